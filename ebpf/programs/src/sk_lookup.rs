//! Chooses the socket for a connection that arrives in the pod's namespace.
//!
//! Established connections never come here: the kernel finds their socket first.

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
    let lookup = ctx.lookup;
    // SAFETY (each read below): `lookup` is the context the kernel passed; these fields are readable.
    if unsafe { (*lookup).protocol } != IPPROTO_TCP {
        return SK_PASS;
    }
    let Some(settings) = SETTINGS.get(0) else {
        return SK_DROP;
    };
    let arrival = if unsafe { (*lookup).family } == AF_INET {
        Arrival {
            interface: unsafe { (*lookup).ingress_ifindex },
            local: v4(unsafe { (*lookup).local_ip4 }),
            local_port: unsafe { (*lookup).local_port } as u16,
            remote: v4(unsafe { (*lookup).remote_ip4 }),
            remote_port: unsafe { (*lookup).remote_port },
        }
    } else {
        Arrival {
            interface: unsafe { (*lookup).ingress_ifindex },
            local: unsafe { (*lookup).local_ip6 },
            local_port: unsafe { (*lookup).local_port } as u16,
            remote: unsafe { (*lookup).remote_ip6 },
            remote_port: unsafe { (*lookup).remote_port },
        }
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
