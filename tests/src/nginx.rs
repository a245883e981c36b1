//! nginx in a place of the lab: a real web server that notes who called.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::daemon::whole_lines;
use crate::error::{Doing, LabError, Result};
use crate::place::Place;
use crate::process::{Process, Program};

/// How long an access may take to get into the log.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// A running nginx. It answers every path with one line about itself, and files below its directory `www` as they
/// are.
#[derive(Debug)]
pub struct Nginx {
    _process: Process,
    dir: PathBuf,
}

impl Place {
    /// Starts nginx on a port, for IPv6 too where there is any.
    ///
    /// # Errors
    /// When it is not installed or does not listen in time.
    pub fn nginx(&self, port: u16) -> Result<Nginx> {
        let dir = self.dir().join(format!("nginx-{port}"));
        fs::create_dir_all(dir.join("www")).doing(|| "make nginx's directory")?;
        let mut listen = format!("listen {port};");
        let ipv6_off = self
            .namespace()
            .enter(|| fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6"))?;
        if ipv6_off.is_ok_and(|off| off.trim() == "0") {
            listen += &format!(" listen [::]:{port};");
        }
        let config = dir.join("nginx.conf");
        let text = CONFIG
            .replace("LISTEN", &listen)
            .replace("DIR", &dir.to_string_lossy())
            .replace("NAME", self.name());
        fs::write(&config, text).doing(|| format!("write {}", config.display()))?;
        let log = dir.join("error.log");
        let process = Program::new([
            "nginx".into(),
            "-p".into(),
            dir.clone().into_os_string(),
            "-e".into(),
            log.clone().into_os_string(),
            "-c".into(),
            config.into_os_string(),
        ])
        .log(&log)
        .spawn(self.namespace())?;
        self.wait_for_listener(port).map_err(|err| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            LabError::because(format!("start nginx in {}: {said}", self.name()), err)
        })?;
        Ok(Nginx {
            _process: process,
            dir,
        })
    }
}

impl Nginx {
    /// Where files to serve go.
    #[must_use]
    pub fn www(&self) -> PathBuf {
        self.dir.join("www")
    }

    /// Client addresses of all requests so far, oldest first.
    #[must_use]
    pub fn clients(&self) -> Vec<IpAddr> {
        let text = whole_lines(&self.dir.join("access.log"));
        text.lines()
            .filter_map(|line| line.split(' ').next()?.parse().ok())
            .collect()
    }

    /// The client address of request number `number`, counted from zero.
    ///
    /// # Errors
    /// When there was no such request in time.
    pub fn client(&self, number: usize) -> Result<IpAddr> {
        let deadline = Instant::now() + LOG_TIMEOUT;
        loop {
            if let Some(client) = self.clients().get(number) {
                return Ok(*client);
            }
            if Instant::now() > deadline {
                return Err(LabError::new(format!(
                    "nginx did not log a request number {number}"
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// One process and no daemon, so that it dies with the lab. The log starts with the client's address.
const CONFIG: &str = "
daemon off;
master_process off;
pid DIR/nginx.pid;
events { worker_connections 1024; }
http {
    log_format line '$remote_addr $remote_port $server_addr \"$request\" $status $body_bytes_sent';
    access_log DIR/access.log line;
    client_body_temp_path DIR/body;
    proxy_temp_path DIR/proxy;
    fastcgi_temp_path DIR/fastcgi;
    uwsgi_temp_path DIR/uwsgi;
    scgi_temp_path DIR/scgi;
    default_type text/plain;
    sendfile on;
    tcp_nodelay on;
    server {
        LISTEN
        root DIR/www;
        location / { try_files $uri @about; }
        location @about { return 200 \"NAME saw $remote_addr\\n\"; }
    }
}
";
