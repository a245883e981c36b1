use std::io::Write;
use std::sync::{Arc, Mutex};

use super::*;

fn check(readiness: &Readiness, method: &str, target: &str, status: u16, body: &str) {
    let request = Request::builder().method(method).uri(target);
    let response = readiness.answer(&request.body(()).unwrap());
    assert_eq!(response.status(), status, "{method} {target}");
    assert_eq!(response.into_body().text(), body, "{method} {target}");
}

#[test]
fn what_is_pending_is_named_in_order_until_it_is_done() {
    let readiness = Readiness::default();
    let ready = |body| {
        let status = if body == "ready\n" { 200 } else { 500 };
        check(&readiness, "GET", "/healthz/ready", status, body);
    };
    ready("ready\n");
    let state = readiness.pending("state manager");
    let proxy = readiness.pending("proxy");
    ready("not ready, pending: proxy, state manager\n");
    drop(proxy);
    ready("not ready, pending: state manager\n");
    // Twice the same name: both have to be done.
    let again = readiness.pending("state manager");
    drop(state);
    ready("not ready, pending: state manager\n");
    drop(again);
    ready("ready\n");
    let _rearmed = readiness.pending("workload proxy manager");
    ready("not ready, pending: workload proxy manager\n");
}

#[test]
fn other_requests_get_a_status_and_nothing_else() {
    let readiness = Readiness::default();
    let _pending = readiness.pending("proxy");
    for method in ["POST", "HEAD", "DELETE", "X"] {
        check(&readiness, method, "/healthz/ready", 405, "");
    }
    for target in [
        "/",
        "/healthz",
        "/healthz/ready/",
        "/quitquitquit",
        "//healthz/ready",
    ] {
        check(&readiness, "GET", target, 404, "");
        check(&readiness, "POST", target, 404, "");
    }
    check(
        &readiness,
        "GET",
        "/healthz/ready?verbose",
        500,
        "not ready, pending: proxy\n",
    );
}

/// A log that can be read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn take(&self) -> Vec<String> {
        let text = String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_says_what_is_waited_for_and_when_that_is_over() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_writer({
            let log = log.clone();
            move || log.clone()
        });
    let _here = tracing::subscriber::set_default(subscriber.finish());
    let readiness = Readiness::default();
    let state = readiness.pending("state manager");
    let telling = tokio::spawn(readiness.clone().tell(Shutdown::default()));

    tokio::time::sleep(Duration::from_secs(1)).await;
    let said = |pending: &str, since: &str| {
        format!(" INFO daemon is not ready pending=\"{pending}\" since={since}")
    };
    assert_eq!(log.take(), [said("state manager", "0ns")]);

    state.because("connection refused".to_owned());
    tokio::time::sleep(Duration::from_secs(105)).await;
    let because = "state manager (connection refused)";
    let lines: Vec<_> = log.take();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, since) in lines.iter().zip([10, 40, 100]) {
        let (text, told) = line.split_once(" since=").unwrap();
        assert_eq!(format!("{text} since="), said(because, ""));
        assert!(told.starts_with(&since.to_string()), "{line}");
    }
    // A day of it is no flood.
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(log.take().len(), 24 * 12);

    drop(state);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let lines = log.take();
    assert!(
        matches!(&lines[..], [line] if line.starts_with(" INFO daemon is ready after=")),
        "{lines:?}"
    );

    let _rearmed = readiness.pending("workload proxy manager");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(log.take().len(), 1);
    telling.abort();
}
