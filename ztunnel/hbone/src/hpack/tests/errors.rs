use super::*;

/// What a decoder of 4096 bytes says that has `custom-key: custom-header` in its table.
#[track_caller]
fn check(block: &str, expected: Result<(), DecodeError>) {
    let mut decoder = Decoder::new(4096);
    decoder
        .decode(b"\x40\x0acustom-key\x0dcustom-header", |_, _| {})
        .unwrap();
    let result = decoder.decode(&bytes(block), |_, _| {});
    assert_eq!(result, expected, "{block}");
}

#[test]
fn an_index_is_of_an_entry() {
    check("be", Ok(()));
    check("80", Err(DecodeError::ZeroIndex));
    for block in ["bf", "7f 00 00", "0f 30 00", "1f 30 00"] {
        check(block, Err(DecodeError::UnknownIndex { index: 63 }));
    }
    let index = u32::MAX;
    check("ff 80ffffff0f", Err(DecodeError::UnknownIndex { index }));
}

#[test]
fn an_integer_has_32_bits() {
    // 4294967295, and one more.
    check(
        "7f c0ffffff0f",
        Err(DecodeError::UnknownIndex { index: u32::MAX }),
    );
    check("7f c1ffffff0f", Err(DecodeError::IntegerTooLarge));
    check("ff ffffffff7f", Err(DecodeError::IntegerTooLarge));
    // As many zeros as one likes mean nothing, but are not read.
    check(
        "ff 8080808000",
        Err(DecodeError::UnknownIndex { index: 127 }),
    );
    check("ff 808080808000", Err(DecodeError::IntegerTooLarge));
    check("00 7f ffffffffff", Err(DecodeError::IntegerTooLarge));
    check("3f ffffffffff01", Err(DecodeError::IntegerTooLarge));
}

#[test]
fn a_block_has_an_end() {
    for block in [
        // Indexes, lengths, a size.
        "ff",
        "ff 80",
        "40",
        "7f",
        "00",
        "0f 80",
        "10",
        "3f",
        "3f 80",
        // Texts.
        "00 01",
        "00 01 61",
        "00 01 61 02 62",
        "41",
        "41 7f",
        "41 05 61",
        "41 85 1f",
        // Longer than any block.
        "41 7f 80ffffff0f 61",
    ] {
        check(block, Err(DecodeError::Truncated));
    }
    check("", Ok(()));
    check("00 00 00", Ok(()));
}

#[test]
fn a_table_changes_before_the_first_field_and_within_what_we_said() {
    check("20 82", Ok(()));
    check("20 3fe11f 82", Ok(()));
    let (size, max) = (4097, 4096);
    check("3fe21f", Err(DecodeError::TableTooLarge { size, max }));
    check("82 20", Err(DecodeError::TableChangeTooLate));
    check("20 82 3fe11f", Err(DecodeError::TableChangeTooLate));
    check("00 00 00 20", Err(DecodeError::TableChangeTooLate));
    // It is empty then.
    check("20 be", Err(DecodeError::UnknownIndex { index: 62 }));
}

#[test]
fn huffman_errors_are_those_of_the_block() {
    check("41 81 1f", Ok(()));
    check("41 81 18", Err(DecodeError::HuffmanPadding));
    check("41 82 1fff", Err(DecodeError::HuffmanPadding));
    check("00 84 ffffffff 00", Err(DecodeError::HuffmanEnd));
    check("be 41 84 ffffffff", Err(DecodeError::HuffmanEnd));
}

#[test]
fn an_entry_larger_than_the_table_empties_it() {
    let mut decoder = Decoder::new(100);
    // A table of 100 bytes, a name, and that name with a value of 90.
    let mut block = bytes("3f45");
    block.extend(b"\x40\x04name\x00");
    block.extend(b"\x7e\x5a");
    block.extend([b'x'; 90]);
    let fields = decode(&mut decoder, &block).unwrap();
    assert_eq!(fields[1], (b"name".to_vec(), vec![b'x'; 90]));
    assert_eq!(decoder.table.size(), 0);
    assert_eq!(decoder.table.entries(), []);
}

#[test]
fn a_name_may_be_from_the_entry_it_evicts() {
    let mut decoder = Decoder::new(100);
    let mut block = bytes("3f45");
    block.extend(b"\x40\x04name\x20");
    block.extend([b'x'; 32]);
    for round in 0..100 {
        block.extend(b"\x7e\x20");
        block.extend([round; 32]);
    }
    let fields = decode(&mut decoder, &block).unwrap();
    assert_eq!(fields.len(), 101);
    assert!(fields.iter().all(|(name, _)| name == b"name"));
    assert_eq!(decoder.table.entries(), [(&b"name"[..], &[99; 32][..])]);
}

/// The attack is a large entry, and thousands of references to it.
#[test]
fn a_block_that_expands_takes_no_memory() {
    let mut decoder = Decoder::new(4096);
    let mut block = b"\x40\x00\x7f\xe0\x1e".to_vec();
    block.extend([b'x'; 4063]);
    block.resize(block.len() + 16384, 0xbe);
    let mut size = 0;
    decoder
        .decode(&block, |name, value| size += name.len() + value.len())
        .unwrap();
    assert_eq!(size, 4063 * 16385);
    assert_eq!(decoder.scratch.capacity(), 0);
    assert!(decoder.table.allocated().0 <= 4096);
}

#[test]
fn an_unused_decoder_has_allocated_nothing() {
    let mut decoder = Decoder::new(4096);
    decode(&mut decoder, &bytes("82 84 01 03 616263")).unwrap();
    assert_eq!(decoder.table.allocated(), (0, 0));
    assert_eq!(decoder.scratch.capacity(), 0);
}
