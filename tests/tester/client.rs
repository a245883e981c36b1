//! The client's half of every check.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use lab::tester::{Outcome, Report, Service};

use crate::connect::{Options, outcome};
use crate::pattern::{Mismatch, Pattern};
use crate::proxy_header;
use crate::read::read;
use crate::server::{BANNER, DOWN_SEED, SOURCE_BYTES, UP_SEED, canonical};

/// What is known so far, and how it ended.
type Checked = Result<(), Failure>;

struct Failure {
    outcome: Outcome,
    detail: String,
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        Self {
            outcome: outcome(&err),
            detail: err.to_string(),
        }
    }
}

impl From<Mismatch> for Failure {
    fn from(mismatch: Mismatch) -> Self {
        match mismatch {
            Mismatch::Ended(after) => Self::new(
                Outcome::Ended,
                format!("the stream ended after {after} bytes"),
            ),
            Mismatch::Wrong(after) => Self::new(Outcome::Wrong, format!("byte {after} is wrong")),
            Mismatch::Failed(after, err) => {
                Self::new(outcome(&err), format!("after {after} bytes: {err}"))
            }
        }
    }
}

impl Failure {
    fn new(outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            outcome,
            detail: detail.into(),
        }
    }
}

/// Makes one check and prints the report. Succeeds if the outcome is good.
pub(crate) fn check(to: SocketAddr, options: Options) -> ExitCode {
    let (started, timeout) = (Instant::now(), options.timeout());
    let (tx, rx) = channel();
    // The check may hang in a way no socket timeout covers; then the report is written without it.
    thread::spawn(move || {
        let mut report = empty_report();
        let checked = if options.parallel > 1 {
            parallel(to, &options, &mut report)
        } else {
            single(to, &options, &mut report)
        };
        drop(tx.send(finish(report, checked)));
    });
    let mut report = rx.recv_timeout(timeout).unwrap_or_else(|_| {
        let late = Failure::new(Outcome::TimedOut, format!("not done after {timeout:?}"));
        finish(empty_report(), Err(late))
    });
    report.elapsed_ms = millis(started.elapsed());
    print(&report);
    if report.outcome == Outcome::Good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Keeps a connection open; exchanges each line of standard input, and reports on each.
pub(crate) fn hold(to: SocketAddr, options: Options) -> ExitCode {
    let per_exchange = Some(Duration::from_secs(10));
    let opened = options.open(to).and_then(|stream| {
        stream.set_read_timeout(per_exchange)?;
        stream.set_write_timeout(per_exchange)?;
        Ok(stream)
    });
    let mut report = empty_report();
    let mut stream = match opened {
        Ok(stream) => stream,
        Err(err) => {
            print(&finish(report, Err(err.into())));
            return ExitCode::FAILURE;
        }
    };
    note_addresses(&stream, &mut report);
    print(&finish(report.clone(), Ok(())));
    for line in io::stdin().lines().map_while(Result::ok) {
        let started = Instant::now();
        let exchanged = exchange(&mut stream, &line, &mut report);
        let mut done = finish(report.clone(), exchanged);
        done.elapsed_ms = millis(started.elapsed());
        print(&done);
    }
    let ended = stream
        .shutdown(Shutdown::Write)
        .map_err(Failure::from)
        .and_then(|()| expect_end(&mut stream));
    print(&finish(report, ended));
    ExitCode::SUCCESS
}

fn single(to: SocketAddr, options: &Options, report: &mut Report) -> Checked {
    let mut stream = options.open(to)?;
    note_addresses(&stream, report);
    match options.service {
        Service::Echo => {
            exchange(&mut stream, &options.text, report)?;
            end_both(&mut stream)?;
        }
        Service::Banner => {
            // Nothing is sent before the server has spoken.
            expect(&mut stream, BANNER, report)?;
            exchange(&mut stream, &options.text, report)?;
            end_both(&mut stream)?;
        }
        Service::Sink => {
            Pattern::new(UP_SEED).write(&mut stream, options.up)?;
            report.sent += options.up;
            end_both(&mut stream)?;
        }
        Service::Source => {
            Pattern::new(DOWN_SEED).check(&mut stream, SOURCE_BYTES)?;
            report.received += SOURCE_BYTES;
            expect_end(&mut stream)?;
        }
        Service::AfterFin => {
            send(&mut stream, options.text.as_bytes(), report)?;
            stream.shutdown(Shutdown::Write)?;
            let expected = format!("got {} bytes\n", options.text.len());
            expect(&mut stream, expected.as_bytes(), report)?;
            expect_end(&mut stream)?;
        }
        Service::EarlyFin => {
            expect(&mut stream, BANNER, report)?;
            expect_end(&mut stream)?;
            // The server's half is over; ours is not.
            Pattern::new(UP_SEED).write(&mut stream, options.up)?;
            report.sent += options.up;
            stream.shutdown(Shutdown::Write)?;
        }
        Service::Reset => {
            send(&mut stream, b"x", report)?;
            return match read(&mut stream, &mut [0; 1]) {
                Err(err) if outcome(&err) == Outcome::Reset => Ok(()),
                Err(err) => Err(err.into()),
                Ok(_) => Err(Failure::new(Outcome::Ended, "ended instead of being reset")),
            };
        }
        Service::Peer => {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            report.received += line.len() as u64;
            report.seen_as =
                Some(line.trim().parse().map_err(|_| {
                    Failure::new(Outcome::Wrong, format!("`{line}` is no address"))
                })?);
        }
        Service::Duplex => duplex(&mut stream, options, report)?,
        Service::Proxied => {
            send(&mut stream, proxy_header::SAMPLE, report)?;
            let said = format!(
                "{} at {}\n",
                proxy_header::SAMPLE_SAYS,
                canonical(stream.local_addr()?)
            );
            expect(&mut stream, said.as_bytes(), report)?;
            exchange(&mut stream, &options.text, report)?;
            end_both(&mut stream)?;
        }
    }
    report.good = 1;
    Ok(())
}

fn duplex(stream: &mut TcpStream, options: &Options, report: &mut Report) -> Checked {
    let mut writer = stream.try_clone()?;
    let (up, down) = (options.up, options.down);
    let sending = thread::spawn(move || {
        writer.write_all(&[up.to_be_bytes(), down.to_be_bytes()].concat())?;
        Pattern::new(UP_SEED).write(&mut writer, up)?;
        writer.shutdown(Shutdown::Write)
    });
    Pattern::new(DOWN_SEED).check(stream, down)?;
    report.received += down;
    sending
        .join()
        .map_err(|_| Failure::new(Outcome::Failed, "the sender panicked"))??;
    report.sent += up;
    let mut verdict = [0];
    stream.read_exact(&mut verdict)?;
    if verdict != *b"+" {
        return Err(Failure::new(
            Outcome::Wrong,
            "the server got other bytes than were sent",
        ));
    }
    expect_end(stream)
}

/// All connections are open before the first is used, and used before the first is closed.
fn parallel(to: SocketAddr, options: &Options, report: &mut Report) -> Checked {
    let count = options.parallel;
    let stage = Barrier::new(count as usize);
    let stage = &stage;
    let results: Vec<Checked> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                scope.spawn(move || {
                    let opened = options.open(to);
                    stage.wait();
                    let mut unused = empty_report();
                    let exchanged = opened.map_err(Failure::from).and_then(|mut stream| {
                        let text = format!("{} {number}", options.text);
                        exchange(&mut stream, &text, &mut unused)?;
                        Ok(stream)
                    });
                    stage.wait();
                    exchanged.and_then(|mut stream| end_both(&mut stream))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Failure::new(Outcome::Failed, "a thread panicked")))
            })
            .collect()
    });
    report.connected = true;
    report.good = results
        .iter()
        .filter(|result| result.is_ok())
        .count()
        .try_into()
        .unwrap_or(0);
    results.into_iter().collect()
}

fn exchange(stream: &mut TcpStream, text: &str, report: &mut Report) -> Checked {
    send(stream, text.as_bytes(), report)?;
    expect(stream, text.as_bytes(), report)
}

fn send(stream: &mut TcpStream, bytes: &[u8], report: &mut Report) -> Checked {
    stream.write_all(bytes)?;
    report.sent += bytes.len() as u64;
    Ok(())
}

fn expect(stream: &mut TcpStream, bytes: &[u8], report: &mut Report) -> Checked {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got)?;
    report.received += bytes.len() as u64;
    if got == bytes {
        return Ok(());
    }
    let got = String::from_utf8_lossy(&got).into_owned();
    Err(Failure::new(Outcome::Wrong, format!("got `{got}`")))
}

fn end_both(stream: &mut TcpStream) -> Checked {
    stream.shutdown(Shutdown::Write)?;
    expect_end(stream)
}

fn expect_end(stream: &mut TcpStream) -> Checked {
    match read(stream, &mut [0; 1])? {
        0 => Ok(()),
        _ => Err(Failure::new(Outcome::Wrong, "bytes after the end")),
    }
}

fn note_addresses(stream: &TcpStream, report: &mut Report) {
    report.connected = true;
    report.local = stream.local_addr().ok();
    report.peer = stream.peer_addr().ok();
}

fn empty_report() -> Report {
    Report {
        outcome: Outcome::Failed,
        detail: String::new(),
        connected: false,
        local: None,
        peer: None,
        seen_as: None,
        sent: 0,
        received: 0,
        good: 0,
        elapsed_ms: 0,
    }
}

fn finish(mut report: Report, checked: Checked) -> Report {
    match checked {
        Ok(()) => report.outcome = Outcome::Good,
        Err(failure) => {
            report.outcome = failure.outcome;
            report.detail = failure.detail;
        }
    }
    report
}

fn millis(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

fn print(report: &Report) {
    match serde_json::to_string(report) {
        Ok(line) => println!("{line}"),
        Err(err) => eprintln!("cannot write the report: {err}"),
    }
}
