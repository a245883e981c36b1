//! Chooses among the addresses that a name was resolved to.
//!
//! The name is the control plane's, its addresses are anybody's who answers for it. The proxy connects from within the
//! pod, and past its own capture: an address that means the pod itself there would be a way around whatever stands
//! before the pod's own ports. None of those is ever used, nor what is no address of a host at all.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{NamedRoute, Route};
use crate::balance::{Rng, below};
use crate::reason::{Reason, Refusal};
use crate::workload::Workload;

/// How many addresses an error names.
const NAMED: usize = 4;

impl NamedRoute {
    /// The route by one of the name's addresses, drawn from those of the better family if there are any, for a
    /// connection of the pod `from`.
    ///
    /// # Errors
    /// `NameUnresolved` when none of them may be used.
    pub fn resolved(
        self,
        addresses: &[IpAddr],
        from: &Workload,
        rng: &mut impl Rng,
    ) -> Result<Route, Refusal> {
        let canonical = addresses.iter().map(IpAddr::to_canonical);
        let usable: Vec<IpAddr> = canonical
            .filter(|ip| self.families.allow(*ip) && is_host(*ip) && !from.addresses.contains(ip))
            .collect();
        let better = |ip: &&IpAddr| ip.is_ipv4() == self.prefer_v4;
        let count = usable.iter().filter(better).count();
        let drawn = match below(count as u64, rng) {
            Some(number) => usable.iter().filter(better).nth(number as usize),
            None => below(usable.len() as u64, rng).and_then(|number| usable.get(number as usize)),
        };
        match drawn {
            Some(ip) => Ok(self.at(*ip)),
            None => Err(self.useless(addresses)),
        }
    }

    fn useless(&self, addresses: &[IpAddr]) -> Refusal {
        let hostname = &self.hostname;
        let detail = if addresses.is_empty() {
            format!("{hostname} has no address")
        } else {
            let first = addresses.iter().take(NAMED).map(IpAddr::to_string);
            let first: Vec<String> = first.collect();
            let more = if addresses.len() > NAMED { ", ..." } else { "" };
            format!(
                "none of the addresses of {hostname} may be used: {}{more} (of a family that the service excludes, the \
                 pod's own, or loopback, link-local, multicast or reserved)",
                first.join(", ")
            )
        };
        Refusal::new(Reason::NameUnresolved, detail)
    }
}

/// Whether it can be the address of another host, wherever one is.
fn is_host(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_host_v4(ip),
        IpAddr::V6(ip) => is_host_v6(ip),
    }
}

fn is_host_v4(ip: Ipv4Addr) -> bool {
    // "This network", and all that is reserved: 240.0.0.0/4 with the broadcast address.
    let first = ip.octets()[0];
    first != 0 && first < 240 && !ip.is_loopback() && !ip.is_link_local() && !ip.is_multicast()
}

fn is_host_v6(ip: Ipv6Addr) -> bool {
    // ::/96 holds the unspecified and the loopback address, and is otherwise out of use: IPv4 addresses in disguise.
    let low = ip.segments()[..6].iter().all(|segment| *segment == 0);
    !low && !ip.is_unicast_link_local() && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;
    use alloc::vec;

    use super::*;
    use crate::decide::Hop;
    use crate::fixture::{Fixed, Lcg};
    use crate::service::IpFamilies;
    use crate::workload::Addresses;

    fn route(families: IpFamilies, prefer_v4: bool) -> NamedRoute {
        NamedRoute {
            hostname: "db.example".into(),
            families,
            prefer_v4,
            hop: Hop::Direct { port: 80 },
        }
    }

    fn chosen(route: NamedRoute, addresses: &str, rng: &mut impl Rng) -> Result<String, Refusal> {
        let addresses: Vec<IpAddr> = addresses
            .split_whitespace()
            .map(|ip| ip.parse().unwrap())
            .collect();
        let mut from = Workload::new("web");
        from.addresses =
            Addresses::Other(vec!["10.1.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into());
        let Route::Direct { to } = route.resolved(&addresses, &from, rng)? else {
            panic!("another route");
        };
        Ok(to.ip().to_string())
    }

    #[test]
    fn the_family_of_the_original_destination_is_better_and_what_the_service_excludes_is_not_used()
    {
        use IpFamilies::{Automatic, Dual, V4Only, V6Only};
        for (families, prefer_v4, addresses, expected) in [
            (Automatic, true, "fd00::9 10.0.0.9", Some("10.0.0.9")),
            (Automatic, false, "10.0.0.9 fd00::9", Some("fd00::9")),
            (Dual, true, "fd00::9", Some("fd00::9")),
            (Dual, false, "10.0.0.9", Some("10.0.0.9")),
            (V4Only, false, "fd00::9 10.0.0.9", Some("10.0.0.9")),
            (V6Only, true, "fd00::9 10.0.0.9", Some("fd00::9")),
            (V4Only, true, "fd00::9", None),
            (V6Only, true, "10.0.0.9", None),
            // In disguise.
            (V6Only, true, "::ffff:10.0.0.9", None),
            (Automatic, true, "::ffff:10.0.0.9 fd00::9", Some("10.0.0.9")),
            (Automatic, true, "", None),
        ] {
            let chosen = chosen(route(families, prefer_v4), addresses, &mut Fixed(7));
            let reason = chosen.as_ref().err().map(|refusal| refusal.reason);
            assert_eq!(chosen.ok().as_deref(), expected, "{addresses}");
            let refused = expected.is_none().then_some(Reason::NameUnresolved);
            assert_eq!(reason, refused, "{addresses}");
        }
    }

    #[test]
    fn what_means_the_pod_itself_or_no_host_is_not_used() {
        for ip in [
            "127.0.0.1",
            "127.255.0.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "239.1.2.3",
            "240.0.0.1",
            "255.255.255.255",
            "10.1.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.0.1",
            "::127.0.0.1",
            "fe80::1",
            "ff02::1",
            "fd00::1",
        ] {
            let only = chosen(route(IpFamilies::Dual, true), ip, &mut Fixed(0)).unwrap_err();
            assert_eq!(only.reason, Reason::NameUnresolved);
            let named = ip.parse::<IpAddr>().unwrap().to_string();
            assert!(only.detail.contains(&named), "{}", only.detail);
            for (others, expected) in [("10.0.0.9", "10.0.0.9"), ("fd00::9", "fd00::9")] {
                let all = format!("{ip} {others} {ip}");
                for random in [0, u32::MAX / 2, u32::MAX] {
                    let route = route(IpFamilies::Dual, ip.parse::<IpAddr>().unwrap().is_ipv4());
                    assert_eq!(chosen(route, &all, &mut Fixed(random)).unwrap(), expected);
                }
            }
        }
    }

    #[test]
    fn every_address_of_the_better_family_has_its_turn() {
        let mut rng = Lcg(1);
        let mut seen = vec![];
        for _ in 0..200 {
            let addresses = "10.0.0.1 fd00::9 10.0.0.2 127.0.0.1 10.0.0.3";
            seen.push(chosen(route(IpFamilies::Dual, true), addresses, &mut rng).unwrap());
        }
        for ip in ["10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            let count = seen.iter().filter(|one| *one == ip).count();
            assert!((40..100).contains(&count), "{ip}: {count} of 200");
        }
    }

    #[test]
    fn an_error_names_only_the_first_addresses() {
        let many = "127.0.0.1 ".repeat(1000);
        let refusal = chosen(route(IpFamilies::Dual, true), &many, &mut Fixed(0)).unwrap_err();
        assert!(refusal.detail.len() < 400, "{}", refusal.detail);
        assert!(refusal.detail.contains("127.0.0.1, ..."));
    }
}
