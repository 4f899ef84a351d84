//! How a node is told what to do, and how it says that it cannot.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Client, Folder, Node, Opening, Plan, room_path};

#[tokio::test]
async fn help_names_every_flag_and_succeeds() {
    let plan = Plan::bare();
    let ended = plan.run(&["serve", "--help"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    for flag in ["--name", "--data", "--http", "--advertise", "--config", "--log-format"] {
        assert!(ended.stdout.contains(flag), "{flag} is missing:\n{}", ended.stdout);
    }
    let ended = plan.run(&["--help"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    for command in ["serve", "status", "bench"] {
        assert!(ended.stdout.contains(command), "{command} is missing:\n{}", ended.stdout);
    }
    assert!(!plan.folder().join("data").exists(), "help touches nothing");
}

#[tokio::test]
async fn the_ready_line_says_where_the_node_is() {
    let node = Node::start().await;
    let port = node.address().port();
    let data = node.data().display();
    assert_eq!(
        node.ready_line(),
        format!("parley n1 ready http=http://127.0.0.1:{port} cluster=off data={data}")
    );
    let mut alice = Client::join(&node, "lobby", "alice").await;
    alice.say_and_settle("hi", "1").await;
    assert!(node.further_output().is_empty(), "standard output has the ready line and nothing else");
}

#[tokio::test]
async fn without_a_command_it_serves_in_the_folder_where_it_is() {
    let node = Plan::bare().env("PARLEY_HTTP_LISTEN", "127.0.0.1:0").plain().start().await;
    assert!(node.ready_line().ends_with(" data=./data"), "{}", node.ready_line());
    assert!(node.data().is_dir());
    Client::join(&node, "lobby", "alice").await.say_and_settle("hi", "1").await;
}

#[tokio::test]
async fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let name_of = async |plan: Plan| {
        let node = plan.start().await;
        node.ready_line().split(' ').nth(1).unwrap().to_owned()
    };
    let file = "[node]\nname = \"from-file\"\n";
    assert_eq!(name_of(Plan::new()).await, "n1");
    assert_eq!(name_of(Plan::new().toml(file)).await, "from-file");
    assert_eq!(name_of(Plan::new().toml(file).env("PARLEY_NODE_NAME", "from-env")).await, "from-env");
    let all = Plan::new().toml(file).env("PARLEY_NODE_NAME", "from-env").arg("--name").arg("from-flag");
    assert_eq!(name_of(all).await, "from-flag");
}

#[tokio::test]
async fn every_key_of_a_single_node_is_taken_from_the_file() {
    let folder = Folder::new();
    let data = folder.join("elsewhere");
    let text = format!(
        r#"
        [node]
        name = "kitchen"
        data = {data:?}
        [http]
        listen = "127.0.0.1:0"
        advertise = "https://chat.example"
        trusted_proxies = ["10.0.0.0/8", "::1/128"]
        allowed_origins = ["https://one.example"]
        [cluster]
        shards = 8
        replicas = 1
        [limits]
        interval_ms = 0
        grace_ms = 1
        [history]
        durability = "interval:20"
        "#
    );
    let node = Plan::bare().plain().arg("--config").arg(write(&folder, &text)).start().await;
    assert!(
        node.ready_line().starts_with("parley kitchen ready http=http://127.0.0.1:"),
        "what it listens on"
    );
    assert!(data.is_dir());
    for (origin, let_in) in
        [("https://chat.example", true), ("https://one.example", true), ("https://two.example", false)]
    {
        let opening = Opening { headers: vec![("Origin", origin)], ..Opening::default() };
        let opened = Client::open(node.address(), &room_path("lobby"), &opening).await;
        assert_eq!(opened.is_ok(), let_in, "{origin}");
    }
}

fn write(folder: &Folder, text: &str) -> String {
    let path = folder.join("parley.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_unknown_key_is_named_with_its_line() {
    for (text, key, line) in [
        ("[limits]\ninterval_ms = 0\n\ninterval = 5\n", "limits.interval", 4),
        ("# a comment\n[limit]\ninterval_ms = 0\n", "limit", 2),
        ("[http]\nlisten = \"127.0.0.1:0\"\nport = 80\n", "http.port", 3),
        ("name = \"n1\"\n", "name", 1),
        ("\n\nnode.nmae = \"n1\"\n", "node.nmae", 3),
    ] {
        let ended = Plan::new().toml(text).run_serve().await;
        let sentence = ended.expect_sentence(2);
        let last = key.rsplit('.').next().unwrap();
        assert!(sentence.contains(last), "{key} is not named: {sentence}");
        assert!(sentence.contains("parley.toml"), "the file is not named: {sentence}");
        let numbers: Vec<_> = sentence.split(|c: char| !c.is_ascii_digit()).collect();
        assert!(numbers.contains(&line.to_string().as_str()), "line {line} is not named: {sentence}");
    }
}

#[tokio::test]
async fn a_value_that_makes_no_sense_is_named_by_its_key() {
    for (text, key) in [
        ("[limits]\ninterval_ms = \"fast\"\n", "interval_ms"),
        ("[limits]\ninterval_ms = -1\n", "interval_ms"),
        ("[limits]\ngrace_ms = 1.5\n", "grace_ms"),
        ("[history]\ndurability = \"maybe\"\n", "durability"),
        ("[history]\ndurability = \"interval:\"\n", "durability"),
        ("[history]\ndurability = \"interval:soon\"\n", "durability"),
        ("[http]\ntrusted_proxies = [\"10.0.0.0/33\"]\n", "trusted_proxies"),
        ("[http]\ntrusted_proxies = [\"somewhere\"]\n", "trusted_proxies"),
        ("[http]\nadvertise = \"chat.example\"\n", "advertise"),
        ("[http]\nallowed_origins = [\"one.example\"]\n", "allowed_origins"),
        ("[node]\nname = \"\"\n", "name"),
        ("[cluster]\nshards = 0\n", "shards"),
        ("[cluster]\nreplicas = 0\n", "replicas"),
        ("limits = 5\n", "limits"),
    ] {
        let ended = Plan::new().without_env().toml(text).run_serve().await;
        let sentence = ended.expect_sentence(2);
        assert!(sentence.contains(key), "{key} is not named: {sentence}");
    }
    for (variable, value, key) in [
        ("PARLEY_LIMITS_INTERVAL_MS", "fast", "interval_ms"),
        ("PARLEY_LIMITS_GRACE_MS", "", "grace_ms"),
        ("PARLEY_HISTORY_DURABILITY", "none", "durability"),
        ("PARLEY_HTTP_TRUSTED_PROXIES", "127.0.0.1/32,x", "trusted_proxies"),
        ("PARLEY_HTTP_LISTEN", "8080", "listen"),
    ] {
        let ended = Plan::bare().env(variable, value).run_serve().await;
        let sentence = ended.expect_sentence(2).to_ascii_lowercase();
        assert!(sentence.contains(key), "{variable}={value}: {sentence}");
    }
}

#[tokio::test]
async fn a_file_that_is_missing_or_no_toml_is_refused() {
    let ended = Plan::new().arg("--config").arg("nowhere.toml").run_serve().await;
    assert!(ended.expect_sentence(2).contains("nowhere.toml"), "{ended:?}");
    let ended = Plan::new().toml("[node]\nname = \"n1\nx = 1\n").run_serve().await;
    let sentence = ended.expect_sentence(2);
    assert!(sentence.contains("parley.toml") && sentence.contains('2'), "file and line: {sentence}");
}

#[tokio::test]
async fn flags_that_make_no_sense_are_refused() {
    let plan = Plan::bare();
    for args in [
        &["serve", "--nonsense"][..],
        &["nonsense"],
        &["serve", "--http"],
        &["serve", "--http", "nowhere"],
        &["serve", "--http", "127.0.0.1:99999"],
        &["serve", "--log-format", "xml"],
        &["serve", "extra"],
    ] {
        let ended = plan.run(args).await;
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert_eq!(ended.stdout, "");
        assert!(!ended.stderr.is_empty() && !ended.stderr.contains("panicked"), "{args:?}: {ended:?}");
    }
    assert!(!plan.folder().join("data").exists(), "nothing was touched");
}

#[tokio::test]
async fn a_cookie_must_be_there_for_a_cluster_and_long_enough() {
    let listen = "[cluster]\nlisten = \"127.0.0.1:0\"\n";
    let ended = Plan::new().toml(listen).run_serve().await;
    assert!(ended.expect_sentence(2).contains("cookie"), "missing: {ended:?}");
    let short = format!("{listen}cookie = \"fifteen-letters\"\n");
    let ended = Plan::new().toml(&short).run_serve().await;
    let sentence = ended.expect_sentence(2);
    assert!(sentence.contains("cookie") && sentence.contains("16"), "too short: {sentence}");
    assert!(!sentence.contains("fifteen-letters"), "a secret is not repeated: {sentence}");
    let ended = Plan::new().toml(listen).env("PARLEY_CLUSTER_COOKIE", "fifteen-letters").run_serve().await;
    assert!(ended.expect_sentence(2).contains("cookie"), "too short by variable: {ended:?}");
    let folder = Folder::new();
    let file = folder.join("cookie");
    std::fs::write(&file, "fifteen-letters\n").unwrap();
    let ended = Plan::new().toml(&format!("{listen}cookie_file = {file:?}\n")).run_serve().await;
    assert!(ended.expect_sentence(2).contains("cookie"), "too short by file: {ended:?}");
    let ended = Plan::new().toml(&format!("{listen}cookie_file = \"/nowhere/cookie\"\n")).run_serve().await;
    assert!(ended.expect_sentence(2).contains("/nowhere/cookie"), "no such file: {ended:?}");
}

#[tokio::test]
async fn peers_that_make_no_sense_are_named() {
    let listen = "[cluster]\nlisten = \"127.0.0.1:0\"\ncookie = \"sixteen-letters!\"\n";
    for (peers, reason) in [
        ("[\"n2\"]", "n2"),
        ("[\"n2=somewhere\"]", "somewhere"),
        ("[\"n 2=127.0.0.1:1\"]", "n 2"),
        ("[\"n1=127.0.0.1:1\"]", "itself"),
        ("[\"n2=127.0.0.1:1\", \"n2=127.0.0.1:2\"]", "twice"),
    ] {
        let ended = Plan::new().toml(&format!("{listen}peers = {peers}\n")).run_serve().await;
        let sentence = ended.expect_sentence(2);
        assert!(sentence.contains("cluster.peers") && sentence.contains(reason), "{peers}: {sentence}");
    }
    let ended = Plan::new().arg("--peer").arg("n2=127.0.0.1:1").run_serve().await;
    let sentence = ended.expect_sentence(2);
    assert!(sentence.contains("cluster.listen"), "peers that could not answer: {sentence}");
    assert!(!sentence.contains("sixteen-letters!"), "{sentence}");
}

#[tokio::test]
async fn a_busy_port_is_told_in_one_sentence() {
    let first = Node::start().await;
    let taken = first.address().to_string();
    let ended = Plan::bare().arg("--http").arg(&taken).run_serve().await;
    let sentence = ended.expect_sentence(1);
    assert!(sentence.contains(&taken), "{sentence}");
    assert_eq!(first.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_folder_is_used_by_one_process_at_a_time() {
    let mut first = Node::start().await;
    let mut alice = Client::join(&first, "lobby", "alice").await;
    let said = alice.say_and_settle("mine", "1").await;
    let folder = first.data().to_owned();
    let ended = Plan::new().data(&folder).run_serve().await;
    let sentence = ended.expect_sentence(1);
    assert!(sentence.contains(folder.to_str().unwrap()), "the folder is not named: {sentence}");
    alice.say_and_settle("still mine", "2").await;
    first.pause();
    assert_eq!(Plan::new().data(&folder).run_serve().await.code, Some(1), "also while the first is frozen");
    first.resume();
    alice.say_and_settle("mine again", "3").await;
    first.kill9();
    let second = Plan::new().data(&folder).start().await;
    assert_eq!(second.history("lobby").await[0], said, "a killed process leaves no lock behind");
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_told_in_one_sentence() {
    let folder = Folder::new();
    let file = folder.join("file");
    std::fs::write(&file, "not a folder").unwrap();
    for data in [file.clone(), file.join("below")] {
        let ended = Plan::new().data(&data).run_serve().await;
        let sentence = ended.expect_sentence(1);
        assert!(sentence.contains(data.to_str().unwrap()), "{sentence}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "not a folder");

    let foreign = folder.join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::set_permissions(&foreign, std::fs::Permissions::from_mode(0o000)).unwrap();
    let plan = Plan::new().data(&foreign);
    // Root reads everything: become nobody. The program itself must stay reachable for that.
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let plan = if rustix::process::geteuid().is_root() { plan.through(&nobody) } else { plan };
    let ended = plan.run_serve().await;
    let sentence = ended.expect_sentence(1);
    assert!(sentence.contains(foreign.to_str().unwrap()), "{sentence}");
}

#[tokio::test]
async fn a_folder_of_something_else_is_left_alone() {
    let folder = Folder::new();
    let data = folder.join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("version"), "something else").unwrap();
    std::fs::write(data.join("letter.txt"), "dear diary").unwrap();
    let ended = Plan::new().data(&data).run_serve().await;
    ended.expect_sentence(1);
    assert_eq!(std::fs::read_to_string(data.join("letter.txt")).unwrap(), "dear diary");
    assert_eq!(std::fs::read_to_string(data.join("version")).unwrap(), "something else");
}

#[tokio::test]
async fn logs_are_for_machines_when_asked() {
    let mut node = Plan::new().arg("--log-format").arg("json").env("RUST_LOG", "debug").start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    alice.say_and_settle("hi", "1").await;
    assert_eq!(node.stop().await, Some(0));
    let log = node.stderr();
    assert!(log.lines().count() > 0);
    for line in log.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(value["level"].is_string() && value["timestamp"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn an_interval_acks_before_the_disk_and_a_stop_writes_all() {
    let mut node = Plan::new().env("PARLEY_HISTORY_DURABILITY", "interval:60000").start().await;
    let mut alice = Client::join(&node, "lobby", "alice").await;
    let lines: Vec<_> = (0..200).map(|n| (format!("m{n}"), format!("{n}"))).collect();
    let (said, _) = alice.say_all(&lines, 60).await; // Without waiting for a minute.
    assert_eq!(node.stop().await, Some(0));
    node.start_again().await;
    assert_eq!(node.history("lobby").await, said);
}
