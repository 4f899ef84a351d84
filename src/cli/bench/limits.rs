//! What the system allows one process: open files, and ports of one source address.

use std::net::{IpAddr, Ipv4Addr};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::BenchError;
use crate::cli::target::Resolved;

/// Files this process has open beside its sessions: the runtime's, the standard ones, some to spare.
const OTHER_FILES: u64 = 64;

/// Sessions from one source address: Linux has 28,232 ports for outgoing connections by default, and others use them too.
const SESSIONS_PER_SOURCE: u32 = 20_000;

/// Raises the limit of open files as far as it goes, and checks that the sessions fit.
///
/// # Errors
/// `Failed`, naming the limit, when they do not.
pub(super) fn allow_sessions(sessions: u32) -> Result<(), BenchError> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        return Err(BenchError::Failed(format!("cannot raise the limit of open files: {error}")));
    }
    let needed = u64::from(sessions) + OTHER_FILES;
    match limit.maximum {
        Some(maximum) if maximum < needed => Err(BenchError::Failed(format!(
            "{sessions} sessions need {needed} open files, but this process may have {maximum} (raise it with `ulimit -Hn`)"
        ))),
        _ => Ok(()),
    }
}

/// The address from which a session connects: the system's choice, or, for very many sessions to a server on this
/// machine, one of 127.0.0.2, 127.0.0.3….
///
/// # Errors
/// `Usage` when there are more sessions than one address has ports, and the server is elsewhere.
pub(super) fn sources(sessions: u32, targets: &[Resolved]) -> Result<Vec<Option<Ipv4Addr>>, BenchError> {
    if sessions <= SESSIONS_PER_SOURCE {
        return Ok(vec![None]);
    }
    let on_loopback = targets
        .iter()
        .all(|target| matches!(target.address.ip(), IpAddr::V4(address) if address.is_loopback()));
    if !on_loopback {
        return Err(BenchError::Usage(format!(
            "more than {SESSIONS_PER_SOURCE} sessions need a server on 127.0.0.1, where they can come from several addresses"
        )));
    }
    let count = sessions.div_ceil(SESSIONS_PER_SOURCE);
    Ok((0..count).map(|index| Some(Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 2)) + index))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> Vec<Resolved> {
        vec![Resolved { authority: address.into(), address: address.parse().unwrap() }]
    }

    #[test]
    fn few_sessions_come_from_wherever_the_system_likes() {
        assert_eq!(sources(20_000, &at("192.0.2.1:80")).unwrap(), vec![None]);
    }

    #[test]
    fn many_sessions_come_from_several_loopback_addresses() {
        let sources = sources(50_000, &at("127.0.0.1:80")).unwrap();
        let expected = [2, 3, 4].map(|last| Some(Ipv4Addr::new(127, 0, 0, last)));
        assert_eq!(sources, expected);
    }

    #[test]
    fn many_sessions_to_elsewhere_are_refused() {
        assert!(matches!(sources(20_001, &at("192.0.2.1:80")), Err(BenchError::Usage(_))));
        assert!(matches!(sources(20_001, &at("[::1]:80")), Err(BenchError::Usage(_))));
    }

    #[test]
    fn more_sessions_than_files_are_refused_with_both_numbers() {
        let Some(maximum) =
            getrlimit(Resource::Nofile).maximum.and_then(|maximum| u32::try_from(maximum).ok())
        else {
            return allow_sessions(1_000_000).unwrap();
        };
        allow_sessions(10).unwrap();
        let refused = allow_sessions(maximum).unwrap_err().to_string();
        assert!(refused.contains(&maximum.to_string()), "{refused}");
    }
}
