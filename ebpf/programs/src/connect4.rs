//! `connect(2)` on an IPv4 socket.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ztunnel_abi::v4;

use crate::connect::hook;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: `sock_addr` is the context the kernel passed; `user_ip4` is readable in this hook.
    let to = v4(unsafe { (*ctx.sock_addr).user_ip4 });
    hook(&ctx, &to)
}
