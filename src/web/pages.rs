//! The chat page: one document, made at start from the three files it is written in.
//!
//! One document, because a page that loads nothing else can be trusted to load nothing else: its policy names the two
//! inlined pieces by their hashes and forbids everything but sockets and requests to nodes.

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use http::{HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};
use warp::reply::Response;

const HTML: &str = include_str!("pages/chat.html");
const STYLE: &str = include_str!("pages/chat.css");
const SCRIPT: &str = include_str!("pages/chat.js");

const STYLE_PLACE: &str = "<!-- parley:style -->";
const SCRIPT_PLACE: &str = "<!-- parley:script -->";

/// The page, ready to be sent.
#[derive(Clone)]
pub struct Page {
    html: bytes::Bytes,
    policy: HeaderValue,
    tag: HeaderValue,
}

impl Page {
    /// Puts the page together.
    ///
    /// # Errors
    /// When its hashes cannot stand in a header, which base64 excludes.
    pub fn new() -> Result<Self, header::InvalidHeaderValue> {
        let style = format!("<style>{STYLE}</style>");
        let script = format!("<script>{SCRIPT}</script>");
        let html = HTML.replacen(STYLE_PLACE, &style, 1).replacen(SCRIPT_PLACE, &script, 1);
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; \
             connect-src 'self' ws: wss: http: https:; base-uri 'none'; form-action 'self'; \
             frame-ancestors 'none'",
            BASE64.encode(Sha256::digest(STYLE)),
            BASE64.encode(Sha256::digest(SCRIPT)),
        );
        let tag = format!("\"{}\"", BASE64.encode(Sha256::digest(html.as_bytes())));
        Ok(Self { html: html.into(), policy: policy.try_into()?, tag: tag.try_into()? })
    }

    /// Answers a request for the page; `known` is the version the browser has, if any.
    #[must_use]
    pub fn reply(&self, known: Option<&HeaderValue>) -> Response {
        let mut response = if known == Some(&self.tag) {
            let mut unchanged = Response::default();
            *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
            unchanged
        } else {
            Response::new(self.html.clone().into())
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        // Asked for anew each time, so that a new version of the node brings its page along.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::ETAG, self.tag.clone());
        headers.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // A private room's name is in the address: it goes to nobody a link leads to.
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_one_document_under_a_strict_policy() {
        let page = Page::new().unwrap();
        let html = std::str::from_utf8(&page.html).unwrap();
        assert!(!html.contains(STYLE_PLACE) && !html.contains(SCRIPT_PLACE));
        assert_eq!(html.matches("<script>").count(), 1);
        assert_eq!(html.matches("<style>").count(), 1);
        assert!(page.policy.to_str().unwrap().starts_with("default-src 'none'"));
        assert_eq!(page.reply(Some(&page.tag.clone())).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(page.reply(None).status(), StatusCode::OK);
    }
}
