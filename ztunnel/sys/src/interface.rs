//! The interfaces of the calling thread's namespace and their addresses.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkMessage};

use crate::netlink::Netlink;

/// The loopback interface has index 1 in every namespace.
pub const LO: u32 = 1;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub up: bool,
    /// In the order in which the kernel lists them: the first of a family is the one to send from.
    pub addresses: Vec<IpAddr>,
}

/// All interfaces, `lo` included, by index.
///
/// # Errors
/// When netlink fails.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut netlink = Netlink::open()?;
    let mut by_index = BTreeMap::new();
    for answer in netlink.dump(Message::GetLink(LinkMessage::default()))? {
        if let Message::NewLink(link) = answer {
            let up = link.header.flags.contains(LinkFlags::Up);
            let index = link.header.index;
            by_index.insert(
                index,
                Interface {
                    index,
                    up,
                    addresses: Vec::new(),
                },
            );
        }
    }
    for answer in netlink.dump(Message::GetAddress(AddressMessage::default()))? {
        if let Message::NewAddress(address) = answer
            && let Some(interface) = by_index.get_mut(&address.header.index)
        {
            interface.addresses.extend(own_address(&address));
        }
    }
    Ok(by_index.into_values().collect())
}

/// Whether an address is good for its link only.
#[must_use]
pub const fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// `IFA_LOCAL` where there is one: on a point-to-point link `IFA_ADDRESS` is the peer's.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
    })
}
