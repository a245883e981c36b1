//! This node at a glance.

use serde::{Deserialize, Serialize};

use super::{Busy, CertificateStatus, Inspector, LinkStatus, Wanted, Way};

/// So much of what is alike is told.
const SHOWN: usize = 10;
/// What to do with a pod that is defective.
pub(crate) const REPAIR: &str =
    "Enroll it again, which repairs what is missing; its connections fail until then.";

/// The node at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: String,
    pub network: String,
    /// Of the daemon.
    pub version: String,
    /// What it says to be to those who know Istio's.
    pub istio_version: String,
    pub up_seconds: u64,
    /// Empty when everything is as it should be.
    pub attention: Vec<Attention>,
    /// What has to be done before the daemon is ready; empty when it is.
    pub pending: Vec<String>,
    pub pods: PodsGlance,
    pub certificates: usize,
    /// Those that are valid and serve.
    pub certificates_valid: usize,
    /// Until the first valid one ends.
    pub first_ends_seconds: Option<i64>,
    pub certificates_failing: Vec<CertificateStatus>,
    pub control_plane: LinkStatus,
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
    /// Connections that are open, by direction; none when the workers are too busy to say.
    pub inbound: Option<usize>,
    pub outbound: Option<usize>,
    pub failures: Failures,
}

/// The pods of this node, as measured in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodsGlance {
    pub captured: usize,
    pub leaving: usize,
    pub defective: usize,
    /// Some of those, and what is wrong with each.
    pub defective_such_as: Vec<(String, String)>,
}

/// Connections that did not end well, lately.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    pub within_seconds: u64,
    /// By reason, the most frequent first.
    pub by_reason: Vec<(String, u64)>,
}

/// Something that somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    pub problem: String,
    pub next_step: String,
}

impl PodsGlance {
    /// Counts a pod that is not as it should be.
    pub fn add_defective(&mut self, pod: String, problem: String) {
        self.defective += 1;
        if self.defective_such_as.len() < SHOWN {
            self.defective_such_as.push((pod, problem));
        }
    }
}

impl Inspector {
    /// How the node is now.
    pub async fn status(&self, version: &str, pods: PodsGlance) -> NodeStatus {
        let (inbound, outbound) = (
            self.open(Way::Inbound).await,
            self.open(Way::Outbound).await,
        );
        self.status_with(version, pods, inbound.ok(), outbound.ok())
    }

    /// The same, for who knows how many connections are open: the workers are not asked.
    pub(crate) fn status_with(
        &self,
        version: &str,
        pods: PodsGlance,
        inbound: Option<usize>,
        outbound: Option<usize>,
    ) -> NodeStatus {
        let mesh = self.mesh.load();
        let (workloads, services, policies) = mesh.counts();
        let certificates = self.identities.list();
        let (within, failures) = self.lately.failures();
        let (bad, good): (Vec<_>, Vec<_>) = certificates
            .into_iter()
            .partition(|certificate| certificate.state.is_bad());
        let valid = || {
            good.iter()
                .filter_map(|certificate| certificate.seconds_left)
        };
        let mut status = NodeStatus {
            node: self.node.to_string(),
            network: self.network.to_string(),
            version: version.to_owned(),
            istio_version: self.istio_version.to_string(),
            up_seconds: self.started.elapsed().as_secs(),
            attention: Vec::new(),
            pending: (self.readiness.names().into_iter().map(str::to_owned)).collect(),
            pods,
            certificates: good.len() + bad.len(),
            certificates_valid: valid().count(),
            first_ends_seconds: valid().min(),
            certificates_failing: bad,
            control_plane: self.link.status(),
            workloads,
            services,
            policies,
            inbound,
            outbound,
            failures: Failures {
                within_seconds: within.as_secs(),
                by_reason: failures
                    .into_iter()
                    .map(|(reason, count)| (reason.code().to_owned(), count))
                    .collect(),
            },
        };
        status.attention = status.attention();
        status.certificates_failing.truncate(SHOWN);
        status
    }

    /// How many connections are open.
    async fn open(&self, way: Way) -> Result<usize, Busy> {
        let wanted = Wanted {
            direction: Some(way),
            ..Wanted::nothing_but_numbers()
        };
        Ok(self.connections(wanted).await?.matched)
    }
}

impl NodeStatus {
    fn attention(&self) -> Vec<Attention> {
        let mut all = Vec::new();
        let mut add = |problem: String, next_step: &str| {
            let next_step = next_step.to_owned();
            all.push(Attention { problem, next_step });
        };
        let link = &self.control_plane;
        if link.connected_seconds.is_none() {
            let since = link.lost_seconds.unwrap_or_default();
            let why = link.problem.as_deref().unwrap_or("no answer yet");
            add(
                format!(
                    "no connection to the control plane {} for {since} s: {why}",
                    link.address
                ),
                "See that it runs and can be reached from this node. What is known stays in use; what is new is not \
                 known here, and certificates are not renewed.",
            );
        }
        if link.rejected > 0 {
            let such_as = link.rejected_such_as.first();
            let such_as = such_as.map_or_else(String::new, |(name, why)| {
                format!(", such as {name}: {why}")
            });
            add(
                format!(
                    "{} resources of the control plane are rejected{such_as}",
                    link.rejected
                ),
                "What was known of them before stays in force. Correct them at their source; the log names each.",
            );
        }
        for (pod, problem) in &self.pods.defective_such_as {
            add(format!("pod {pod} is defective: {problem}"), REPAIR);
        }
        for certificate in self.certificates_failing.iter().take(SHOWN) {
            let why = certificate
                .failure
                .as_deref()
                .unwrap_or("it was not renewed in time");
            let (identity, state) = (&certificate.identity, certificate.state.as_str());
            add(
                format!("certificate of {identity}, {state}: {why}"),
                "See that the CA runs and accepts this node: `ztunnel certificates` shows all.",
            );
        }
        let told = all.len();
        if told == 0 && !self.pending.is_empty() {
            let problem = format!("the daemon is not ready: {}", self.pending.join(", "));
            let next_step = "Wait for it. The log says what it waits for, and why.".to_owned();
            all.push(Attention { problem, next_step });
        }
        let more = (self.pods.defective - self.pods.defective_such_as.len())
            + self.certificates_failing.len().saturating_sub(SHOWN);
        if more > 0 {
            all.push(Attention {
                problem: format!("and {more} more pods or certificates"),
                next_step: "`ztunnel pods` and `ztunnel certificates` show all.".to_owned(),
            });
        }
        all
    }
}
