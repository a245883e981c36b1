//! What both connect hooks share: finding the pod, and carrying out the decision.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_setsockopt,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::SockAddrContext;
use ztunnel_abi::connect::{Connect, PodEntry, decide};
use ztunnel_abi::{Address, CAPTURE_MARK};

const SOCK_STREAM: u32 = 1;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// `BPF_F_NO_PREALLOC`: memory for the pods there are, not for the most there could be.
const NO_PREALLOC: u32 = 1;

/// Enrolled pods by the cookie of their network namespace.
#[map]
static PODS: HashMap<u64, PodEntry> = HashMap::pinned(65_536, NO_PREALLOC);

/// The cgroup of the daemon, whose connects are never captured. A cgroup id is never used again, and no process
/// of a pod can enter a cgroup; a mark could be set by any pod with `CAP_NET_RAW`.
#[map]
static DAEMON: Array<u64> = Array::pinned(1, 0);

#[inline(always)]
pub fn hook(ctx: &SockAddrContext, to: &Address) -> i32 {
    // SAFETY: the context is the one the kernel passed, and this helper only reads it.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: entries are replaced whole by the daemon; a torn read could at worst mix two states of the same
    // pod, both of which capture or refuse.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return ALLOW;
    };
    // SAFETY: `sock_addr` is the context the kernel passed; `type` is readable in connect hooks.
    // MPTCP sockets are streams too; of the other stream protocols (SCTP) none can be carried, and none is
    // touched by a mark without a listener for it.
    if unsafe { (*ctx.sock_addr).type_ } != SOCK_STREAM {
        return ALLOW;
    }
    // SAFETY: no arguments.
    let caller = unsafe { bpf_get_current_cgroup_id() };
    if DAEMON.get(0).is_some_and(|daemon| *daemon == caller) {
        return ALLOW;
    }
    match decide(pod, to, bound_interface(ctx)) {
        Connect::Pass => ALLOW,
        Connect::Refuse => REFUSE,
        Connect::Capture => mark(ctx),
    }
}

#[inline(always)]
fn bound_interface(ctx: &SockAddrContext) -> u32 {
    // SAFETY: as above; the verifier knows `sk` as a socket or null and checks the test.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return 0;
    }
    // SAFETY: not null, and the kernel holds the socket while the hook runs.
    unsafe { (*sk).bound_dev_if }
}

#[inline(always)]
fn mark(ctx: &SockAddrContext) -> i32 {
    let mut mark = CAPTURE_MARK;
    // SAFETY: `mark` is readable for the length given, and the helper is allowed in connect hooks.
    let rc = unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            SOL_SOCKET,
            SO_MARK,
            (&raw mut mark).cast(),
            size_of::<u32>() as i32,
        )
    };
    // A connection that cannot be marked would leave in plaintext.
    if rc == 0 { ALLOW } else { REFUSE }
}
