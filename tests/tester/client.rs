//! The client's half of every check.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab::tester::{Outcome, Report, Service};

use crate::connect::{Options, outcome};
use crate::pattern::{Mismatch, Pattern};
use crate::proxy_header;
use crate::read::read;
use crate::server::{BANNER, DOWN_SEED, SOURCE_BYTES, UP_SEED, canonical};

/// How it ended.
type Checked = Result<(), Failure>;

/// What is known so far, also to whoever no longer waits for the end.
#[derive(Clone)]
struct Known(Arc<Mutex<Report>>);

impl Known {
    fn nothing() -> Self {
        Self(Arc::new(Mutex::new(Report {
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
        })))
    }

    fn note<T>(&self, note: impl FnOnce(&mut Report) -> T) -> T {
        note(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn report(&self, checked: Checked) -> Report {
        let mut report = self.note(|report| report.clone());
        match checked {
            Ok(()) => report.outcome = Outcome::Good,
            Err(failure) => {
                report.outcome = failure.outcome;
                report.detail = failure.detail;
            }
        }
        report
    }
}

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
    let known = Known::nothing();
    let checking = known.clone();
    // The check may hang in a way no socket timeout covers; then the report says how far it came.
    thread::spawn(move || {
        let checked = if options.parallel > 1 {
            parallel(to, &options, &checking)
        } else {
            single(to, &options, &checking)
        };
        drop(tx.send(checked));
    });
    let checked = rx.recv_timeout(timeout).unwrap_or_else(|_| {
        let late = format!("not done after {timeout:?}");
        Err(Failure::new(Outcome::TimedOut, late))
    });
    let mut report = known.report(checked);
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
    let known = Known::nothing();
    let mut stream = match opened {
        Ok(stream) => stream,
        Err(err) => {
            print(&known.report(Err(err.into())));
            return ExitCode::FAILURE;
        }
    };
    note_addresses(&stream, &known);
    print(&known.report(Ok(())));
    for line in io::stdin().lines().map_while(Result::ok) {
        let started = Instant::now();
        let exchanged = exchange(&mut stream, &line, &known);
        let mut done = known.report(exchanged);
        done.elapsed_ms = millis(started.elapsed());
        print(&done);
    }
    let ended = stream
        .shutdown(Shutdown::Write)
        .map_err(Failure::from)
        .and_then(|()| expect_end(&mut stream));
    print(&known.report(ended));
    ExitCode::SUCCESS
}

fn single(to: SocketAddr, options: &Options, known: &Known) -> Checked {
    let mut stream = options.open(to)?;
    note_addresses(&stream, known);
    match options.service {
        Service::Echo => {
            exchange(&mut stream, &options.text, known)?;
            end_both(&mut stream)?;
        }
        Service::Banner => {
            // Nothing is sent before the server has spoken.
            expect(&mut stream, BANNER, known)?;
            exchange(&mut stream, &options.text, known)?;
            end_both(&mut stream)?;
        }
        Service::Sink => {
            Pattern::new(UP_SEED).write(&mut stream, options.up)?;
            known.note(|report| report.sent += options.up);
            end_both(&mut stream)?;
        }
        Service::Source => {
            Pattern::new(DOWN_SEED).check(&mut stream, SOURCE_BYTES)?;
            known.note(|report| report.received += SOURCE_BYTES);
            expect_end(&mut stream)?;
        }
        Service::AfterFin => {
            send(&mut stream, options.text.as_bytes(), known)?;
            stream.shutdown(Shutdown::Write)?;
            let expected = format!("got {} bytes\n", options.text.len());
            expect(&mut stream, expected.as_bytes(), known)?;
            expect_end(&mut stream)?;
        }
        Service::EarlyFin => {
            expect(&mut stream, BANNER, known)?;
            expect_end(&mut stream)?;
            // The server's half is over; ours is not.
            Pattern::new(UP_SEED).write(&mut stream, options.up)?;
            known.note(|report| report.sent += options.up);
            stream.shutdown(Shutdown::Write)?;
        }
        Service::Reset => {
            send(&mut stream, b"x", known)?;
            return match read(&mut stream, &mut [0; 1]) {
                Err(err) if outcome(&err) == Outcome::Reset => Ok(()),
                Err(err) => Err(err.into()),
                Ok(_) => Err(Failure::new(Outcome::Ended, "ended instead of being reset")),
            };
        }
        Service::Peer => {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            known.note(|report| report.received += line.len() as u64);
            let seen_as = line
                .trim()
                .parse()
                .map_err(|_| Failure::new(Outcome::Wrong, format!("`{line}` is no address")))?;
            known.note(|report| report.seen_as = Some(seen_as));
        }
        Service::Duplex => duplex(&mut stream, options, known)?,
        Service::Proxied => {
            send(&mut stream, proxy_header::SAMPLE, known)?;
            let said = format!(
                "{} at {}\n",
                proxy_header::SAMPLE_SAYS,
                canonical(stream.local_addr()?)
            );
            expect(&mut stream, said.as_bytes(), known)?;
            exchange(&mut stream, &options.text, known)?;
            end_both(&mut stream)?;
        }
    }
    known.note(|report| report.good = 1);
    Ok(())
}

fn duplex(stream: &mut TcpStream, options: &Options, known: &Known) -> Checked {
    let mut writer = stream.try_clone()?;
    let (up, down) = (options.up, options.down);
    let sending = thread::spawn(move || {
        writer.write_all(&[up.to_be_bytes(), down.to_be_bytes()].concat())?;
        Pattern::new(UP_SEED).write(&mut writer, up)?;
        writer.shutdown(Shutdown::Write)
    });
    Pattern::new(DOWN_SEED).check(stream, down)?;
    known.note(|report| report.received += down);
    sending
        .join()
        .map_err(|_| Failure::new(Outcome::Failed, "the sender panicked"))??;
    known.note(|report| report.sent += up);
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
fn parallel(to: SocketAddr, options: &Options, known: &Known) -> Checked {
    let count = options.parallel;
    let stage = Barrier::new(count as usize);
    let stage = &stage;
    let results: Vec<Checked> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                scope.spawn(move || {
                    let opened = options.open(to);
                    stage.wait();
                    let unused = Known::nothing();
                    let exchanged = opened.map_err(Failure::from).and_then(|mut stream| {
                        let text = format!("{} {number}", options.text);
                        exchange(&mut stream, &text, &unused)?;
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
    let good = results.iter().filter(|result| result.is_ok()).count();
    known.note(|report| {
        report.connected = true;
        report.good = good.try_into().unwrap_or(0);
    });
    results.into_iter().collect()
}

fn exchange(stream: &mut TcpStream, text: &str, known: &Known) -> Checked {
    send(stream, text.as_bytes(), known)?;
    expect(stream, text.as_bytes(), known)
}

fn send(stream: &mut TcpStream, bytes: &[u8], known: &Known) -> Checked {
    stream.write_all(bytes)?;
    known.note(|report| report.sent += bytes.len() as u64);
    Ok(())
}

fn expect(stream: &mut TcpStream, bytes: &[u8], known: &Known) -> Checked {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got)?;
    known.note(|report| report.received += bytes.len() as u64);
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

fn note_addresses(stream: &TcpStream, known: &Known) {
    known.note(|report| {
        report.connected = true;
        report.local = stream.local_addr().ok();
        report.peer = stream.peer_addr().ok();
    });
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
