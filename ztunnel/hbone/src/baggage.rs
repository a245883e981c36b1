//! What each side tells the other about its workload, for telemetry. Never a ground for a decision: the peer can
//! write here what it likes.

use crate::text::visible;

pub(crate) const HEADER: &str = "baggage";

/// How much of a peer's baggage is looked at: a few times what a workload needs.
const LONGEST: usize = 4096;

/// One workload. Empty is "not said".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Baggage<'a> {
    pub cluster: &'a str,
    pub namespace: &'a str,
    /// `deployment`, `cronjob`, `pod` or `job`; says which key carries the name.
    pub workload_type: &'a str,
    pub workload_name: &'a str,
    pub service_name: &'a str,
    pub service_version: &'a str,
    pub region: &'a str,
    pub zone: &'a str,
}

const WORKLOAD_KEYS: [(&str, &str); 4] = [
    ("deployment", "k8s.deployment.name"),
    ("cronjob", "k8s.cronjob.name"),
    ("pod", "k8s.pod.name"),
    ("job", "k8s.job.name"),
];

impl<'a> Baggage<'a> {
    /// Writes it as the value of a header. There is no escaping in it, so a value that could not be told from its
    /// surroundings is left out.
    pub(crate) fn write(&self, text: &mut String) {
        let typed = WORKLOAD_KEYS
            .iter()
            .find(|(kind, _)| *kind == self.workload_type);
        let begin = text.len();
        for (key, value) in [
            ("k8s.cluster.name", self.cluster),
            ("k8s.namespace.name", self.namespace),
            (typed.map_or("", |(_, key)| key), self.workload_name),
            ("service.name", self.service_name),
            ("service.version", self.service_version),
            ("cloud.region", self.region),
            ("cloud.availability_zone", self.zone),
        ] {
            if key.is_empty() || value.is_empty() || !value.bytes().all(plain) {
                continue;
            }
            if text.len() > begin {
                text.push(',');
            }
            text.push_str(key);
            text.push('=');
            text.push_str(value);
        }
    }

    /// Reads the header lines of a peer. What is not understood is passed over.
    #[must_use]
    pub fn parse(lines: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut baggage = Self::default();
        let mut left = LONGEST;
        for line in lines {
            let Some(line) = visible(line) else { continue };
            if line.len() > left {
                break;
            }
            left -= line.len();
            for member in line.split(',') {
                let mut parts = member.split('=');
                if let (Some(key), Some(value)) = (parts.next(), parts.next()) {
                    baggage.set(key.trim(), value.trim());
                }
            }
        }
        baggage
    }

    fn set(&mut self, key: &str, value: &'a str) {
        let field = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service_name,
            "service.version" => &mut self.service_version,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                let Some((kind, _)) = WORKLOAD_KEYS.iter().find(|(_, name)| *name == key) else {
                    return;
                };
                self.workload_type = kind;
                &mut self.workload_name
            }
        };
        *field = value;
    }
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b',' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: Baggage<'_> = Baggage {
        cluster: "Kubernetes",
        namespace: "shop",
        workload_type: "deployment",
        workload_name: "web",
        service_name: "web",
        service_version: "v1",
        region: "r1",
        zone: "z1",
    };

    fn header(baggage: &Baggage<'_>) -> String {
        let mut text = String::new();
        baggage.write(&mut text);
        text
    }

    fn parse(lines: &[&str]) -> String {
        let b = Baggage::parse(lines.iter().map(|line| line.as_bytes()));
        [
            b.cluster,
            b.namespace,
            b.workload_type,
            b.workload_name,
            b.service_name,
            b.service_version,
            b.region,
            b.zone,
        ]
        .join("|")
    }

    #[test]
    fn keys_come_in_the_order_of_the_contract() {
        let expected = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,\
                        service.name=web,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
        assert_eq!(header(&WEB), expected);
    }

    #[test]
    fn empty_and_unspeakable_values_are_left_out() {
        let odd = Baggage {
            cluster: "",
            service_name: "a,b=c",
            service_version: "line\nbreak",
            region: "größe",
            ..WEB
        };
        let expected = "k8s.namespace.name=shop,k8s.deployment.name=web,cloud.availability_zone=z1";
        assert_eq!(header(&odd), expected);
        assert_eq!(header(&Baggage::default()), "");
    }

    #[test]
    fn lines_are_merged_and_unknown_keys_ignored() {
        for (lines, expected) in [
            (
                &["k8s.cluster.name=c,k8s.job.name=j", "cloud.region=r"][..],
                "c||job|j|||r|",
            ),
            (&["x=y,,=,k8s.namespace.name"], "|||||||"),
            (&["service.name=a=b"], "||||a|||"),
            (&[" service.name = a , service.version = 1"], "||||a|1||"),
            (&[], "|||||||"),
        ] {
            assert_eq!(parse(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn header_survives_a_round_trip() {
        assert_eq!(Baggage::parse([header(&WEB).as_bytes()]), WEB);
    }

    #[test]
    fn too_much_baggage_stays_behind() {
        let long = format!("x={},service.name=a", "y".repeat(LONGEST));
        assert_eq!(parse(&["service.version=1", &long]), "|||||1||");
    }
}
