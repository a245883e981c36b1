//! The examples of RFC 7541 appendix C. Those without Huffman code are also what we send.

use super::super::decoder::Input;
use super::super::encoder::integer;
use super::super::{Encoder, Indexing};
use super::*;

/// Fields, one per line as `name: value`.
fn lines(text: &str) -> Fields {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, value) = line.rsplit_once(": ").unwrap();
            (name.into(), value.into())
        })
        .collect()
}

struct Example {
    block: &'static str,
    fields: &'static str,
    /// The table afterwards, newest first, and its size.
    table: &'static str,
    size: usize,
}

fn check_decoder(decoder: &mut Decoder, example: &Example) {
    let fields = decode(decoder, &bytes(example.block)).unwrap();
    assert_eq!(fields, lines(example.fields));
    let table = lines(example.table);
    let table: Vec<_> = table.iter().map(|(n, v)| (&n[..], &v[..])).collect();
    assert_eq!(decoder.table.entries(), table);
    assert_eq!(decoder.table.size(), example.size);
}

fn check_encoder(encoder: &mut Encoder, example: &Example, indexing: Indexing) {
    let mut block = Vec::new();
    encoder.begin(&mut block);
    for (name, value) in lines(example.fields) {
        encoder.field(&name, &value, indexing, &mut block);
    }
    assert_eq!(block, bytes(example.block));
    assert_eq!(encoder.table.size(), example.size);
}

#[test]
fn c1_integers() {
    for (value, prefix, digits) in [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a")] {
        let mut written = Vec::new();
        integer(0, prefix, value, &mut written);
        assert_eq!(written, bytes(digits));
        let mut input = Input { rest: &written };
        assert_eq!(input.integer(prefix).unwrap() as usize, value);
        assert_eq!(input.rest, b"");
    }
}

#[test]
fn c2_fields() {
    let indexed = Example {
        block: "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        fields: "custom-key: custom-header",
        table: "custom-key: custom-header",
        size: 55,
    };
    let not_indexed = Example {
        block: "040c 2f73 616d 706c 652f 7061 7468",
        fields: ":path: /sample/path",
        table: "",
        size: 0,
    };
    let never_indexed = Example {
        block: "1008 7061 7373 776f 7264 0673 6563 7265 74",
        fields: "password: secret",
        table: "",
        size: 0,
    };
    let in_static = Example {
        block: "82",
        fields: ":method: GET",
        table: "",
        size: 0,
    };
    for example in [&indexed, &not_indexed, &never_indexed, &in_static] {
        check_decoder(&mut Decoder::new(4096), example);
    }
    check_encoder(&mut Encoder::new(), &indexed, Indexing::Index);
    check_encoder(&mut Encoder::new(), &not_indexed, Indexing::Once);
    check_encoder(&mut Encoder::new(), &in_static, Indexing::Index);
    check_encoder(&mut Encoder::new(), &in_static, Indexing::Once);
}

const REQUEST_1: &str = "
    :method: GET
    :scheme: http
    :path: /
    :authority: www.example.com";
const REQUEST_2: &str = "
    :method: GET
    :scheme: http
    :path: /
    :authority: www.example.com
    cache-control: no-cache";
const REQUEST_3: &str = "
    :method: GET
    :scheme: https
    :path: /index.html
    :authority: www.example.com
    custom-key: custom-value";

/// C.3 and C.4: the blocks differ, and nothing else.
fn requests(blocks: [&'static str; 3]) -> [Example; 3] {
    let [first, second, third] = blocks;
    [
        Example {
            block: first,
            fields: REQUEST_1,
            table: ":authority: www.example.com",
            size: 57,
        },
        Example {
            block: second,
            fields: REQUEST_2,
            table: "
                cache-control: no-cache
                :authority: www.example.com",
            size: 110,
        },
        Example {
            block: third,
            fields: REQUEST_3,
            table: "
                custom-key: custom-value
                cache-control: no-cache
                :authority: www.example.com",
            size: 164,
        },
    ]
}

#[test]
fn c3_requests() {
    let (mut decoder, mut encoder) = (Decoder::new(4096), Encoder::new());
    for example in requests([
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ]) {
        check_decoder(&mut decoder, &example);
        check_encoder(&mut encoder, &example, Indexing::Index);
    }
}

#[test]
fn c4_requests_with_huffman_code() {
    let mut decoder = Decoder::new(4096);
    for example in requests([
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ]) {
        check_decoder(&mut decoder, &example);
    }
}

const RESPONSE_1: &str = "
    :status: 302
    cache-control: private
    date: Mon, 21 Oct 2013 20:13:21 GMT
    location: https://www.example.com";
const RESPONSE_2: &str = "
    :status: 307
    cache-control: private
    date: Mon, 21 Oct 2013 20:13:21 GMT
    location: https://www.example.com";
const RESPONSE_3: &str = "
    :status: 200
    cache-control: private
    date: Mon, 21 Oct 2013 20:13:22 GMT
    location: https://www.example.com
    content-encoding: gzip
    set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";

/// C.5 and C.6, for a table of 256 bytes.
fn responses(blocks: [&'static str; 3]) -> [Example; 3] {
    let [first, second, third] = blocks;
    [
        Example {
            block: first,
            fields: RESPONSE_1,
            table: "
                location: https://www.example.com
                date: Mon, 21 Oct 2013 20:13:21 GMT
                cache-control: private
                :status: 302",
            size: 222,
        },
        Example {
            block: second,
            fields: RESPONSE_2,
            table: "
                :status: 307
                location: https://www.example.com
                date: Mon, 21 Oct 2013 20:13:21 GMT
                cache-control: private",
            size: 222,
        },
        Example {
            block: third,
            fields: RESPONSE_3,
            table: "
                set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1
                content-encoding: gzip
                date: Mon, 21 Oct 2013 20:13:22 GMT",
            size: 215,
        },
    ]
}

/// What makes the table of either side as large as the examples take for granted.
fn table_of_256() -> (Decoder, Encoder) {
    let (mut decoder, mut encoder) = (Decoder::new(256), Encoder::new());
    encoder.set_peer_table(256);
    let mut block = Vec::new();
    encoder.begin(&mut block);
    assert_eq!(block, bytes("3fe101"));
    assert_eq!(decode(&mut decoder, &block).unwrap(), []);
    (decoder, encoder)
}

#[test]
fn c5_responses() {
    let (mut decoder, mut encoder) = table_of_256();
    for example in responses([
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133
         2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70
         6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d
         54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049
         5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e
         3d31",
    ]) {
        check_decoder(&mut decoder, &example);
        check_encoder(&mut encoder, &example, Indexing::Index);
    }
}

#[test]
fn c6_responses_with_huffman_code() {
    let (mut decoder, _) = table_of_256();
    for example in responses([
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6
         2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab
         77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f
         9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ]) {
        check_decoder(&mut decoder, &example);
    }
}
