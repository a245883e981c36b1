//! Chooses the socket for a connection that arrives in the pod's namespace.
//!
//! Established connections never come here: the kernel finds their socket first.

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::macros::{map, sk_lookup};
use aya_ebpf::maps::{Array, SockMap};
use aya_ebpf::programs::SkLookupContext;
use ztunnel_abi::lookup::{Arrival, LISTENER_SLOTS, PodSettings, Verdict, decide};
use ztunnel_abi::v4;

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
/// `BPF_SK_LOOKUP_F_REPLACE`: while a program is exchanged for a new one both run; the last one decides.
const REPLACE: u64 = 1;

/// The daemon's listeners in this pod. A listener that closes leaves by itself.
#[map]
static LISTENERS: SockMap = SockMap::pinned(LISTENER_SLOTS, 0);

#[map]
static SETTINGS: Array<PodSettings> = Array::pinned(1, 0);

#[sk_lookup]
pub fn pod(ctx: SkLookupContext) -> u32 {
    let Some(arrival) = read(ctx.lookup) else {
        return SK_PASS;
    };
    let Some(settings) = SETTINGS.get(0) else {
        return SK_DROP;
    };
    match decide(settings, &arrival) {
        Verdict::Pass => SK_PASS,
        Verdict::Drop => SK_DROP,
        Verdict::Assign(slot) => match LISTENERS.redirect_sk_lookup(&ctx, slot, REPLACE) {
            Ok(()) => SK_PASS,
            // The listener is gone, and with it the daemon: passing would fail open.
            Err(_) => SK_DROP,
        },
    }
}

/// The connection, if it is TCP. Both families' fields are always read, each by a load of its own: the kernel shows
/// zeros for the other family, and a load whose offset depends on the family is one the verifier refuses.
#[inline(always)]
fn read(lookup: *mut bpf_sk_lookup) -> Option<Arrival> {
    macro_rules! field {
        ($($field:tt)+) => {
            // SAFETY: `lookup` is the context the kernel passed, where this field is readable.
            unsafe { (&raw const (*lookup).$($field)+).read_volatile() }
        };
    }
    if field!(protocol) != IPPROTO_TCP {
        return None;
    }
    let local6 = [
        field!(local_ip6[0]),
        field!(local_ip6[1]),
        field!(local_ip6[2]),
        field!(local_ip6[3]),
    ];
    let remote6 = [
        field!(remote_ip6[0]),
        field!(remote_ip6[1]),
        field!(remote_ip6[2]),
        field!(remote_ip6[3]),
    ];
    let (local4, remote4) = (v4(field!(local_ip4)), v4(field!(remote_ip4)));
    let is_v4 = field!(family) == AF_INET;
    Some(Arrival {
        interface: field!(ingress_ifindex),
        local: if is_v4 { local4 } else { local6 },
        local_port: field!(local_port) as u16,
        remote: if is_v4 { remote4 } else { remote6 },
        remote_port: field!(remote_port),
    })
}
