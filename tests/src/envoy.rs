//! A real Envoy in a place of the lab, as somebody else's end of a tunnel, or as a sidecar.
//!
//! The program is the one that `cargo xtask setup` installs (`xtask/src/setup/envoy.rs`). One process that dies with the lab; what it says is in
//! `envoy.log` in the place's directory. In a configuration, [`DIR`] stands for that directory.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::binary;
use crate::control_plane::Credential;
use crate::error::{Doing, LabError, Result};
use crate::place::Place;
use crate::process::{Process, Program};

/// The place's directory, in a configuration.
pub const DIR: &str = "$DIR";
/// Two worker threads, as Istio's default.
const OPTIONS: [&str; 5] = [
    "--concurrency",
    "2",
    "--disable-hot-restart",
    "--log-level",
    "warning",
];

/// Envoy, as it is to be started.
#[derive(Clone, Debug)]
pub struct EnvoyProgram {
    argv: Vec<OsString>,
    files: Vec<(&'static str, String)>,
}

impl EnvoyProgram {
    /// The one that is installed.
    ///
    /// # Errors
    /// When it is not.
    pub fn find() -> Result<Self> {
        let setup = "cargo xtask setup";
        binary::find("tools/envoy/program", "ZTUNNEL_ENVOY", setup).map(Self::at)
    }

    /// The one at a path.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            argv: vec![path.into().into_os_string()],
            files: Vec::new(),
        }
    }

    /// Runs it as this group.
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        let setpriv = ["setpriv", "--regid", group, "--clear-groups", "--"];
        self.argv.splice(..0, setpriv.map(Into::into));
        self
    }

    /// Gives it one more option.
    #[must_use]
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.argv.extend([name, value].map(Into::into));
        self
    }

    /// The certificate that it presents, and the root that it trusts: what [`common_tls`] speaks of.
    #[must_use]
    pub fn credential(mut self, credential: &Credential, root_pem: String) -> Self {
        let chain = credential.chain.iter();
        let chain = chain.map(|der| pem("CERTIFICATE", der)).collect();
        let key = pem("PRIVATE KEY", credential.key.secret_der());
        self.files.extend([
            ("chain.pem", chain),
            ("key.pem", key),
            ("root.pem", root_pem),
        ]);
        self
    }

    /// Starts it in a place, and waits until it listens on all these ports.
    ///
    /// # Errors
    /// When it does not do so in time; what it said is in it.
    pub fn start(mut self, place: &Place, config: &str, ports: &[u16]) -> Result<Envoy> {
        let dir = place.dir();
        let config = config.replace(DIR, &dir.to_string_lossy());
        self.files.push(("envoy.yaml", config));
        for (name, text) in &self.files {
            fs::write(dir.join(name), text).doing(|| format!("write Envoy's {name}"))?;
        }
        let (config, log) = (dir.join("envoy.yaml"), dir.join("envoy.log"));
        self.argv.extend(["--config-path".into(), config.into()]);
        self.argv.extend(OPTIONS.map(Into::into));
        let envoy = Envoy {
            process: Program::new(self.argv)
                .dir(dir)
                .log(&log)
                .spawn(place.namespace())?,
            place: place.clone(),
        };
        for &port in ports {
            place.wait_for_listener(port).map_err(|err| {
                let said = fs::read_to_string(&log).unwrap_or_default();
                LabError::because(format!("start Envoy in {}: {said}", place.name()), err)
            })?;
        }
        Ok(envoy)
    }
}

/// Mutual TLS 1.3 by `alpn` with a peer of this identity, as a `common_tls_context`.
#[must_use]
pub fn common_tls(alpn: &str, peer: &str) -> String {
    format!(
        "{{alpn_protocols: [{alpn}], \
         tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, \
         tls_certificates: [{{certificate_chain: {{filename: {DIR}/chain.pem}}, private_key: {{filename: {DIR}/key.pem}}}}], \
         validation_context: {{trusted_ca: {{filename: {DIR}/root.pem}}, \
         match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: '{peer}'}}}}]}}}}"
    )
}

/// An Envoy that runs.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    place: Place,
}

impl Envoy {
    /// What a configuration begins with whose Envoy is to be [asked](Self::ask).
    pub const ADMIN: &str = "admin: {address: {pipe: {path: $DIR/admin.sock}}}\n";

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The program.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Posts to its admin interface, and gives the answer.
    ///
    /// # Errors
    /// When it has none, or does not do it.
    pub fn ask(&self, path: &str) -> Result<String> {
        let socket = self.place.dir().join("admin.sock");
        let socket = socket.to_string_lossy();
        let url = format!("http://admin{path}");
        let curl = ["curl", "-sS", "--fail", "-X", "POST"];
        let argv = curl.into_iter().chain(["--unix-socket", &socket, &url]);
        Ok(self.place.run(argv)?.success()?.stdout)
    }

    /// The value of one of its counters or gauges; nothing while it has none of that name.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn stat(&self, name: &str) -> Result<Option<u64>> {
        let stats = self.ask("/stats")?;
        let values = stats.lines().filter_map(|line| line.split_once(": "));
        let mut values = values.filter(|(of, _)| *of == name);
        Ok(values.next().and_then(|(_, value)| value.parse().ok()))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap_or_default())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
