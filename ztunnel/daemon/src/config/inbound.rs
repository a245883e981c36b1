//! How connections reach apps.

use ztunnel_node::inbound::InboundSettings;
use ztunnel_node::task::SourceAddress;

use super::settings;
use super::source::Reader;
use super::value;

pub(super) fn read(reader: &mut Reader<'_>) -> Option<InboundSettings> {
    let source = reader.optional(&settings::ENABLE_ORIG_SRC, value::boolean);
    let localhost_app_tunnel = reader.value(&settings::LOCALHOST_APP_TUNNEL, value::boolean);
    let response_baggage = reader.value(&settings::ENABLE_RESPONSE_BAGGAGE, value::boolean);
    Some(InboundSettings {
        source: match source? {
            Some(true) => SourceAddress::Client,
            Some(false) => SourceAddress::Pod,
            None => SourceAddress::ClientIfPossible,
        },
        localhost_app_tunnel: localhost_app_tunnel?,
        response_baggage: response_baggage?,
    })
}
