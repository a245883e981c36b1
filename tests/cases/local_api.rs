//! A client of the local API, as the CNI plugin will be one: lines of JSON over the daemon's socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use lab::{Node, Pod};
use serde_json::{Value, json};

/// An open connection to a daemon.
pub(crate) struct Api(BufReader<UnixStream>);

impl Api {
    pub(crate) fn connect(node: &Node) -> std::io::Result<Self> {
        let stream = UnixStream::connect(node.dir().join("api.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request and waits for the answer; an error when the daemon goes away before it gave one.
    pub(crate) fn ask(&mut self, request: &Value) -> std::io::Result<Value> {
        writeln!(self.0.get_mut(), "{request}")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    pub(crate) fn enroll(&mut self, pod: &Pod) -> std::io::Result<Value> {
        self.enroll_as(pod, pod.uid(), &pod.namespace().path())
    }

    /// Enrolls under another uid or at another path.
    pub(crate) fn enroll_as(
        &mut self,
        pod: &Pod,
        uid: &str,
        netns: &Path,
    ) -> std::io::Result<Value> {
        let workload = pod.workload();
        self.ask(&json!({"enroll": {
            "uid": uid, "netns": netns, "namespace": workload.namespace, "name": workload.name,
            "service_account": workload.service_account,
        }}))
    }

    pub(crate) fn unenroll(&mut self, uid: &str) -> std::io::Result<Value> {
        self.ask(&json!({"unenroll": {"uid": uid}}))
    }

    /// The daemon's pods in the order of their `namespace/name`: state and what is wrong.
    pub(crate) fn states(&mut self) -> std::io::Result<Vec<(String, String, Option<String>)>> {
        let answer = self.ask(&json!({"pods": {}}))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pods = answer["pods"].as_array().cloned().unwrap_or_default();
        let mut states: Vec<_> = pods
            .iter()
            .map(|pod| {
                let key = format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]));
                (
                    key,
                    text(&pod["state"]),
                    pod["problem"].as_str().map(str::to_owned),
                )
            })
            .collect();
        states.sort();
        Ok(states)
    }
}

/// The answer to a request that changed something.
pub(crate) fn changed() -> Value {
    json!({"done": {"changed": true}})
}

/// The answer to a request that found everything as it should be.
pub(crate) fn unchanged() -> Value {
    json!({"done": {"changed": false}})
}
