//! Header compression of HTTP/2 (HPACK, RFC 7541), one decoder and one encoder per connection.
//!
//! Invariants: nothing here panics on what a peer sends, and an error of the decoder is one of the whole connection,
//! since the tables of the two sides are no longer the same. A table takes what its size says and no more; a side
//! that does not use its table has allocated nothing for it.
//!
//! Absent on purpose: Huffman code for what we send. It takes more time than it saves bytes: what repeats is an index,
//! and the rest of a CONNECT is short. Also whether a name or a value is one that HTTP allows; who reads them decides.

mod decoder;
mod encoder;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use decoder::{DecodeError, Decoder};
pub(crate) use encoder::{Encoder, Indexing};
