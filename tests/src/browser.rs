//! A real browser in a place of the lab: what a person would see of a page.
//!
//! Headless Chromium, driven by its DevTools protocol over a pair of pipes: no port, no driver, nothing but JSON with a
//! zero byte after each message. It has a profile of its own below the place's directory, and is killed with its
//! handle, and with the lab.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::error::{Doing, LabError, Result};
use crate::place::Place;
use crate::process::{Process, Program};

/// As Debian's packages `chromium-headless-shell` and `chromium` call it, the smaller one first.
const PROGRAMS: [&str; 2] = ["chromium-headless-shell", "chromium"];
/// How long one command may take. A busy machine starts Chromium in some seconds.
const COMMAND: Duration = Duration::from_secs(60);
/// How long something may take to appear on a page.
const APPEAR: Duration = Duration::from_secs(20);

/// Becomes Chromium, with its pipes where it expects them and what it prints in a file.
const LAUNCH: &str = r#"log=$1; shift; exec "$@" 3<&0 4>&1 </dev/null >>"$log" 2>&1"#;

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    process: Process,
    log: PathBuf,
    session: Option<String>,
    commands: u64,
    events: VecDeque<Value>,
    complaints: Vec<String>,
    requests: Vec<String>,
}

/// What a person prefers, as the page is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColorScheme {
    Light,
    Dark,
}

impl Place {
    /// Starts a browser with an empty page.
    ///
    /// # Errors
    /// When it is not installed (`cargo xtask setup` does it) or does not answer.
    pub fn browser(&self) -> Result<Browser> {
        let (profile, log) = (self.dir().join("browser"), self.dir().join("browser.log"));
        let program = find()?;
        let profile = format!("--user-data-dir={}", profile.display());
        let log_file = log.display().to_string();
        let mut argv = vec!["sh", "-c", LAUNCH, "browser", &log_file, &program];
        argv.extend([
            "--headless",
            "--remote-debugging-pipe",
            // The lab is root, for whom there is no sandbox; what it looks at is ours.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-extensions",
            "--disable-breakpad",
            "--disable-crash-reporter",
            "--no-first-run",
            "--no-default-browser-check",
            "--no-proxy-server",
            "--hide-scrollbars",
            // Pictures are the same everywhere, and small.
            "--disable-lcd-text",
            "--force-color-profile=srgb",
            &profile,
            "about:blank",
        ]);
        let process = Program::new(argv)
            .env("HOME", self.dir())
            .zero_terminated()
            .spawn(self.namespace())?;
        let mut browser = Browser {
            process,
            log,
            session: None,
            commands: 0,
            events: VecDeque::new(),
            complaints: Vec::new(),
            requests: Vec::new(),
        };
        browser.attach()?;
        Ok(browser)
    }
}

impl Browser {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Goes to a page, and waits until it is loaded.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn open(&mut self, url: &str) -> Result<()> {
        self.events.clear();
        let answer = self.command("Page.navigate", &json!({ "url": url }))?;
        if let Some(error) = answer["errorText"].as_str() {
            return Err(LabError::new(format!("open {url}: {error}")));
        }
        self.event("Page.loadEventFired").map(drop)
    }

    /// Makes its window so large, in pixels.
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", &size)
            .map(drop)
    }

    /// Says which colors the person prefers.
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn prefer(&mut self, scheme: ColorScheme) -> Result<()> {
        let value = match scheme {
            ColorScheme::Light => "light",
            ColorScheme::Dark => "dark",
        };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.command("Emulation.setEmulatedMedia", &features)
            .map(drop)
    }

    /// The value of an expression of JavaScript in the page.
    ///
    /// # Errors
    /// When it throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let wanted = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.command("Runtime.evaluate", &wanted)?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            return Err(LabError::new(format!("evaluate {expression}: {thrown}")));
        }
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is neither false, null, empty nor zero, and gives its value.
    ///
    /// # Errors
    /// When that takes too long; the text of the page is in it.
    pub fn until(&mut self, what: &str, expression: &str) -> Result<Value> {
        let deadline = Instant::now() + APPEAR;
        loop {
            let value = self.evaluate(expression)?;
            let so = match &value {
                Value::Null | Value::Bool(false) => false,
                Value::String(text) => !text.is_empty(),
                Value::Number(number) => number.as_f64() != Some(0.0),
                _ => true,
            };
            if so {
                return Ok(value);
            }
            if Instant::now() > deadline {
                let text = self.evaluate("document.body.innerText")?;
                let text = text.as_str().unwrap_or_default();
                return Err(LabError::new(format!(
                    "in vain for {APPEAR:?}: {what}. The page says: {text}\n{:?}",
                    self.complaints
                )));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A picture of the page from its top, as PNG.
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn picture(&mut self, width: u32, height: u32) -> Result<Vec<u8>> {
        let clip = json!({"x": 0, "y": 0, "width": width, "height": height, "scale": 1});
        let wanted = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let answer = self.command("Page.captureScreenshot", &wanted)?;
        let data = answer["data"].as_str().unwrap_or_default();
        STANDARD.decode(data).doing(|| "read a picture")
    }

    /// What the page's console, the browser's policies and the network complained about so far.
    ///
    /// # Errors
    /// When the browser is gone.
    pub fn complaints(&mut self) -> Result<&[String]> {
        // Whatever was said before this is answered has come by then.
        self.evaluate("0")?;
        Ok(&self.complaints)
    }

    /// Every address that was asked for so far.
    #[must_use]
    pub fn requests(&self) -> &[String] {
        &self.requests
    }

    fn attach(&mut self) -> Result<()> {
        let targets = self.command("Target.getTargets", &json!({}))?;
        let targets = targets["targetInfos"].as_array().cloned();
        let page = targets
            .into_iter()
            .flatten()
            .find(|target| target["type"] == "page")
            .ok_or_else(|| LabError::new("the browser has no page"))?;
        let wanted = json!({"targetId": page["targetId"], "flatten": true});
        let attached = self.command("Target.attachToTarget", &wanted)?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.command(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(())
    }

    fn command(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.commands += 1;
        let id = self.commands;
        let mut command = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        self.process.write_line(&command.to_string())?;
        let deadline = Instant::now() + COMMAND;
        loop {
            let mut message = self.message(deadline)?;
            if message["id"] != id {
                self.note(message);
                continue;
            }
            if let Some(error) = message.get("error") {
                return Err(LabError::new(format!("{method} {params}: {error}")));
            }
            return Ok(message["result"].take());
        }
    }

    /// The first event of a kind since the last page was asked for.
    fn event(&mut self, method: &str) -> Result<Value> {
        let deadline = Instant::now() + COMMAND;
        loop {
            while let Some(event) = self.events.pop_front() {
                if event["method"] == method {
                    return Ok(event);
                }
            }
            let message = self.message(deadline)?;
            self.note(message);
        }
    }

    fn message(&mut self, deadline: Instant) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = self.process.line(left).map_err(|err| {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            LabError::because(format!("talk to the browser, which said: {said}"), err)
        })?;
        serde_json::from_str(&message).doing(|| format!("read a message of the browser: {message}"))
    }

    fn note(&mut self, event: Value) {
        let params = &event["params"];
        match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => self.complaints.push(params.to_string()),
            "Runtime.consoleAPICalled" if params["type"] != "log" => {
                self.complaints.push(params.to_string());
            }
            "Log.entryAdded" => self.complaints.push(params["entry"].to_string()),
            "Network.requestWillBeSent" => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                self.requests.push(url.to_owned());
            }
            "Page.loadEventFired" => self.events.push_back(event),
            _ => {}
        }
    }
}

fn find() -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = PROGRAMS.iter().find_map(|name| {
        let mut files = std::env::split_paths(&path).map(|dir| dir.join(name));
        files.find(|file| file.is_file())
    });
    let found = found.ok_or_else(|| {
        LabError::new(format!(
            "none of {PROGRAMS:?} is installed: run `cargo xtask setup`"
        ))
    })?;
    Ok(found.display().to_string())
}
