//! `connect(2)` on an IPv6 socket, which may be to an IPv4 address in its mapped form.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::connect::hook;

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: `sock_addr` is the context the kernel passed; `user_ip6` is readable in this hook.
    let to = unsafe { (*ctx.sock_addr).user_ip6 };
    hook(&ctx, &to)
}
