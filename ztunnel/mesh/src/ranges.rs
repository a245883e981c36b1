//! Which lengths of address ranges are in use: the ranges around an address can then be looked up, one for each
//! length, instead of walking all ranges there are.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::net::IpAddr;

use ipnet::IpNet;

use crate::service::Vip;

/// How many ranges there are by network, family and length.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeLengths(Arc<BTreeMap<Arc<str>, Counts>>);

/// By whether it is IPv6, and length.
type Counts = BTreeMap<(bool, u8), usize>;

impl RangeLengths {
    pub(crate) fn add(&mut self, range: &Vip) {
        let networks = Arc::make_mut(&mut self.0);
        let counts = networks.entry(Arc::clone(&range.network)).or_default();
        *counts.entry(key(range.net())).or_default() += 1;
    }

    /// Takes back an `add`.
    pub(crate) fn remove(&mut self, range: &Vip) {
        let networks = Arc::make_mut(&mut self.0);
        let Some(counts) = networks.get_mut(&range.network) else {
            return;
        };
        if let Some(count) = counts.get_mut(&key(range.net())) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&key(range.net()));
            }
        }
        if counts.is_empty() {
            networks.remove(&range.network);
        }
    }

    /// The ranges around `ip` that may exist.
    pub(crate) fn around(&self, network: &str, ip: IpAddr) -> impl Iterator<Item = IpNet> {
        let v6 = ip.is_ipv6();
        let counts = self.0.get(network).into_iter();
        let lengths = counts.flat_map(move |counts| counts.range((v6, 0)..=(v6, u8::MAX)));
        lengths.filter_map(move |(&(_, length), _)| Some(IpNet::new(ip, length).ok()?.trunc()))
    }
}

fn key(range: IpNet) -> (bool, u8) {
    (matches!(range, IpNet::V6(_)), range.prefix_len())
}
