//! A pool in an object store: an S3 server of moto's that the test starts. Ignored where `TARN_TEST_PYTHON` names no
//! Python that has it.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
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
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    std::io::Read::read_to_end(&mut stream, &mut Vec::new()).unwrap();
    server
}

/// Two ingests at once, ingests that are killed, and the same content as a local pool in the end.
pub(crate) fn pool_in_s3(_: &Sandbox) {
    let server = start(&python_with("moto.server").expect("ignored without"));
    let endpoint = format!("http://127.0.0.1:{}", server.port);
    let t = Sandbox::with_environment([
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ]);
    storage::sources(&t);
    source::metadata(&t.path("m/5.parquet"), 390..405);
    let ingest = |pool: &'static str| ["ingest", pool, "m", "s", "--fragment-rows", "100", "--group-bytes", "200KB"];
    t.ok(&ingest("local"));
    let expected = storage::content(&t, "local");

    let spawn = |pool| t.command(&ingest(pool)).stderr(Stdio::piped()).spawn().unwrap();
    let both = [spawn("s3://bucket/two"), spawn("s3://bucket/two")].map(|tarn| tarn.wait_with_output().unwrap());
    for output in &both {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || stderr.contains("changed by another writer"), "{stderr}");
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
