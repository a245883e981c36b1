//! The fields of a response that is not decoded yet: where they end, and how many values they become.
//!
//! The limit on the length of a message is not enough: each part of a list is a value of its own once decoded, and
//! two bytes on the wire, an empty resource, become 150 in memory. So the parts are counted before anything is
//! decoded. What single resources contain is decoded later, one at a time, with a limit of its own (`convert`).

/// Resources, their aliases and removed names of one response: ten times what the largest mesh has that this is made
/// for.
pub(super) const MAX_PARTS: usize = 1_000_000;

/// Fields of a response.
const RESOURCES: u64 = 2;
const REMOVED_RESOURCES: u64 = 6;
/// Field of a resource.
const ALIASES: u64 = 4;

/// Never less than there are once decoded.
pub(super) fn parts(response: &[u8]) -> usize {
    let count = |(number, content): (u64, &[u8])| match number {
        RESOURCES => {
            1 + Fields(content)
                .filter(|(number, _)| *number == ALIASES)
                .count()
        }
        REMOVED_RESOURCES => 1,
        _ => 0,
    };
    Fields(response).map(count).sum()
}

/// How many of the first `bytes` are whole fields.
pub(super) fn whole_fields(bytes: &[u8]) -> usize {
    let mut fields = Fields(bytes);
    while fields.next().is_some() {}
    bytes.len() - fields.0.len()
}

/// Number and content of the fields of a message, those of groups among them. Ends before what is malformed or not
/// all there: there ends the decoding, too.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = self.0;
        let tag = varint(&mut rest)?;
        let length = match tag & 7 {
            0 => {
                varint(&mut rest)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut rest)?).ok()?,
            5 => 4,
            // The begin and the end of a group.
            3 | 4 => 0,
            _ => return None,
        };
        let content;
        (content, self.0) = rest.split_at_checked(length)?;
        Some((tag >> 3, content))
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        // What does not fit is cut off, as prost does or refuses to.
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use prost_types::Any;
    use ztunnel_proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

    fn resource(name: &str, aliases: usize) -> Resource {
        Resource {
            name: name.into(),
            version: "v".repeat(300),
            // Looks like a list of resources itself, and is none.
            resource: Some(Any {
                type_url: "t".into(),
                value: [0x12, 0].repeat(50),
            }),
            aliases: vec![String::new(); aliases],
            ..Resource::default()
        }
    }

    #[test]
    fn all_parts_are_counted_and_nothing_else() {
        let mut response = DeltaDiscoveryResponse {
            type_url: "t".into(),
            nonce: "n".into(),
            resources: vec![resource("a", 0), resource("b", 2), Resource::default()],
            removed_resources: vec!["x".into(), String::new()],
            ..DeltaDiscoveryResponse::default()
        };
        assert_eq!(parts(&response.encode_to_vec()), 3 + 2 + 2);
        response.removed_resources = vec![String::new(); MAX_PARTS];
        assert_eq!(parts(&response.encode_to_vec()), 5 + MAX_PARTS);
    }

    #[test]
    fn nothing_hides_parts() {
        let response = DeltaDiscoveryResponse {
            removed_resources: vec![String::new(); 3],
            ..DeltaDiscoveryResponse::default()
        };
        let flood = response.encode_to_vec();
        // Unknown fields of every kind, an empty group among them.
        for before in [
            &[0xa0, 0x06, 0xff, 0x01][..],
            &[0xa1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0xa2, 0x06, 0x02, 0x32, 0x00],
            &[0xa3, 0x06, 0xa4, 0x06],
            &[0xa5, 0x06, 1, 2, 3, 4],
        ] {
            let message = [before, &flood].concat();
            let decoded = DeltaDiscoveryResponse::decode(&*message).unwrap();
            assert_eq!(decoded.removed_resources.len(), 3);
            assert_eq!(parts(&message), 3, "{before:?}");
        }
        for malformed in [&[0x0f][..], &[0x12, 0x05, 0], &[0x80; 11], &[0x12]] {
            assert_eq!(parts(malformed), 0, "{malformed:?}");
            assert!(DeltaDiscoveryResponse::decode(malformed).is_err());
        }
    }
}
