//! Writes the inputs that fuzzing of `certificates` begins with: good ones, of each kind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/certificates");
    fs::create_dir_all(&seeds)?;
    let root = CertifiedIssuer::self_signed(ca("root"), KeyPair::generate()?)?;
    let middle = CertifiedIssuer::signed_by(ca("intermediate"), KeyPair::generate()?, &root)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![
        SanType::URI(WEB.try_into()?),
        SanType::DnsName("web".try_into()?),
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &middle)?;
    let pem = key.serialize_der();

    let der = [leaf.der().as_ref(), middle.der(), root.der()];
    let head = [pem.as_slice(), WEB.as_bytes()];
    write(&seeds, "chain", 0, &[&head[..], &der].concat())?;
    write(
        &seeds,
        "chain-short",
        0,
        &[&head[..], &[der[0], der[2]]].concat(),
    )?;
    let text = [leaf.pem(), middle.pem(), root.pem() + &middle.pem()];
    let text = text.each_ref().map(String::as_bytes);
    write(&seeds, "chain-text", 1, &[&head[..], &text].concat())?;
    write(&seeds, "peer", 4, &der)?;

    let revoked = |serial: u64| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 1),
        next_update: date_time_ymd(2027, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked(1), revoked(1 << 40)],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&middle)?;
    fs::write(seeds.join("list"), [&[2], list.der().as_ref()].concat())?;
    fs::write(seeds.join("list-raw"), [&[3], list.der().as_ref()].concat())?;
    let text = list.pem()? + &root.pem() + &list.pem()?;
    fs::write(seeds.join("list-text"), [&[3], text.as_bytes()].concat())?;
    Ok(())
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn write(seeds: &Path, name: &str, kind: u8, fields: &[&[u8]]) -> io::Result<()> {
    let mut input = vec![kind];
    for field in fields {
        let length = u16::try_from(field.len()).map_err(io::Error::other)?;
        input.extend(length.to_be_bytes());
        input.extend(*field);
    }
    let file: PathBuf = seeds.join(name);
    fs::write(file, input)
}
