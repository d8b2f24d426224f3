//! A pool in an object store: an S3 server of moto's that the test starts. Ignored where `TARN_TEST_PYTHON` names no
//! Python that has it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::{Sandbox, source, storage};

/// The Python that has `module`, if the variable names one.
pub(crate) fn python_with(module: &str) -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("TARN_TEST_PYTHON")?);
    let found = Command::new(&python).args(["-c", &format!("import {module}")]).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success()).then_some(python)
}

struct Server {
    process: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(python: &PathBuf) -> Server {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let process = Command::new(python)
        .args(["-m", "moto.server", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Server { process, port };
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(server.process.try_wait().unwrap().is_none(), "moto's server ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = "PUT /bucket HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    server
}

/// What stands between tarn and the store.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Every third request is answered by 503, every seventh connection is cut off.
    Trouble,
    /// Nothing goes on for two minutes, once.
    Pause,
    /// Conditions on writes are lost on the way.
    NoConditions,
}

/// Serves the store at another port, with faults.
fn proxy(to: u16, fault: Fault) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let requests = requests.clone();
            std::thread::spawn(move || pass_on(client, to, fault, &requests));
        }
    });
    port
}

/// Passes on one request a connection, which both sides are told to close.
fn pass_on(mut client: TcpStream, to: u16, fault: Fault, requests: &AtomicUsize) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let value = |name: &str| head.lines().find_map(|line| line.to_lowercase().strip_prefix(name).map(|value| value.trim().to_string()));
    let mut body = vec![0; value("content-length:").and_then(|n| n.parse().ok()).unwrap_or(0)];
    client.read_exact(&mut body).ok()?;
    let n = requests.fetch_add(1, Ordering::Relaxed);
    match fault {
        Fault::Trouble if n % 3 == 2 => {
            client.write_all(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()?;
            return Some(());
        }
        Fault::Trouble if n % 7 == 3 => return None,
        Fault::Pause if n == 20 => std::thread::sleep(Duration::from_secs(120)),
        _ => {}
    }
    let dropped = |line: &&str| {
        let line = line.to_lowercase();
        line.starts_with("connection:") || (fault == Fault::NoConditions && line.starts_with("if-none-match:"))
    };
    let lines: Vec<&str> = head.lines().filter(|line| !line.is_empty() && !dropped(line)).collect();
    let mut server = TcpStream::connect(("127.0.0.1", to)).ok()?;
    server.write_all(format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n")).as_bytes()).ok()?;
    server.write_all(&body).ok()?;
    std::io::copy(&mut server, &mut client).ok()?;
    Some(())
}

fn environment(port: u16) -> Sandbox {
    let endpoint = format!("http://127.0.0.1:{port}");
    Sandbox::with_environment([
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ])
}

/// Eight ingests into one pool at once, some of the same files, others of files that bring the same uids: each comes to its
/// end, and the pool is that of one after the other.
pub(crate) fn eight_at_once(_: &Sandbox) {
    let server = start(&python_with("moto.server").expect("ignored without"));
    let t = environment(server.port);
    storage::sources(&t);
    // Shards bring samples that metadata completes, beside uids that come twice.
    source::metadata(&t.path("twice/5.parquet"), 390..460);
    source::metadata(&t.path("twice/6.parquet"), 430..480);
    let all = [["m", "s"], ["s", "m"], ["s", "twice"], ["twice", "s"], ["m", "twice"], ["twice", "m"], ["s", "s"], ["m", "m"]];
    for sources in all {
        t.ok(&["ingest", "local", sources[0], sources[1], "--fragment-rows", "100"]);
    }
    let spawn = |sources: [&str; 2]| {
        let args = ["ingest", "s3://bucket/eight", sources[0], sources[1], "--fragment-rows", "100", "--group-bytes", "200KB"];
        t.command(&args).stderr(Stdio::piped()).spawn().unwrap()
    };
    for tarn in all.map(spawn) {
        let output = tarn.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let uids = "SELECT uid, text, original_width FROM pool ORDER BY uid; SELECT uid, sha256 FROM images ORDER BY uid; \
        SELECT kind, sha256, count(*) FROM ledger GROUP BY 1, 2 ORDER BY 2";
    let of = |pool: &str| t.ok(&["sql", pool, "-c", uids, "--format", "csv"]);
    assert!(of("s3://bucket/eight") == of("local"), "{}", of("s3://bucket/eight"));
    t.ok(&["verify", "s3://bucket/eight", "--deep"]);
}

/// Answers of 503, connections that are cut off and a pause of two minutes cost time only.
pub(crate) fn troubled_store(_: &Sandbox) {
    let server = start(&python_with("moto.server").expect("ignored without"));
    let t = environment(server.port);
    storage::sources(&t);
    t.ok(&["ingest", "local", "m", "s"]);
    let expected = storage::content(&t, "local");
    let through = |fault: Fault, pool: &str| {
        let endpoint = format!("http://127.0.0.1:{}", proxy(server.port, fault));
        let args = ["ingest", pool, "m", "s"];
        t.command(&args).env("AWS_ENDPOINT", endpoint).output().unwrap()
    };
    std::thread::scope(|scope| {
        for (fault, pool) in [(Fault::Trouble, "s3://bucket/trouble"), (Fault::Pause, "s3://bucket/pause")] {
            let (t, expected, through) = (&t, &expected, &through);
            scope.spawn(move || {
                let output = through(fault, pool);
                assert!(output.status.success(), "{pool}: {}", String::from_utf8_lossy(&output.stderr));
                assert!(&storage::content(t, pool) == expected, "{pool}");
            });
        }
    });
    let output = through(Fault::NoConditions, "s3://bucket/none");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("keeps no writers apart"), "{stderr}");
    assert!(t.ok(&["doctor", "s3://bucket/somewhere"]).is_empty());
}

/// Two ingests at once, ingests that are killed, and the same content as a local pool in the end.
pub(crate) fn pool_in_s3(_: &Sandbox) {
    let server = start(&python_with("moto.server").expect("ignored without"));
    let t = environment(server.port);
    storage::sources(&t);
    source::metadata(&t.path("m/5.parquet"), 390..405);
    let ingest = |pool: &'static str| ["ingest", pool, "m", "s", "--fragment-rows", "100", "--group-bytes", "200KB"];
    t.ok(&ingest("local"));
    let expected = storage::content(&t, "local");

    let spawn = |pool| t.command(&ingest(pool)).stderr(Stdio::piped()).spawn().unwrap();
    let both = [spawn("s3://bucket/two"), spawn("s3://bucket/two")].map(|tarn| tarn.wait_with_output().unwrap());
    for output in &both {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
    }
    t.ok(&ingest("s3://bucket/two"));
    // Which of the two says what it rejects is left open.
    let without_rejects = |content: &str| content.lines().filter(|line| !line.contains("\"reason\"")).collect::<Vec<_>>().join("\n");
    let got = storage::content(&t, "s3://bucket/two");
    assert!(without_rejects(&got) == without_rejects(&expected), "two at once");

    let mut wait = Duration::from_millis(20);
    loop {
        let mut tarn = spawn("s3://bucket/killed");
        std::thread::sleep(wait);
        tarn.kill().unwrap();
        if tarn.wait().unwrap().success() {
            break;
        }
        wait += Duration::from_millis(40);
    }
    assert!(storage::content(&t, "s3://bucket/killed") == expected, "killed");
    t.tarn(&["verify", "s3://bucket/killed", "--repair"]);
    t.ok(&["verify", "s3://bucket/killed", "--deep"]);
    t.ok(&["tag", "s3://bucket/killed", "done"]);
    t.ok(&["filter", "s3://bucket/killed", "clip_score", "--at", "done", "-o", "subset.npy"]);
    t.ok(&["export", "s3://bucket/killed", "no_filter", "--to", "webdataset", "-o", "out"]);
    t.fails(1, &["sql", "s3://bucket/none", "-c", "SELECT 1"], &["no pool at s3://bucket/none"]);
}

/// Any Lance reader opens a pool: pylance, and DuckDB and Arrow behind it.
pub(crate) fn pool_in_pylance(t: &Sandbox) {
    let python = python_with("lance").expect("ignored without");
    storage::sources(t);
    t.ok(&["ingest", "pool", "m", "s"]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/peers/read_pool.py");
    let output = Command::new(python).arg(script).arg(t.path("pool")).arg("clip_a").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("400 samples, 120 images") && text.contains("nearest of itself: True"), "{text}");
}
