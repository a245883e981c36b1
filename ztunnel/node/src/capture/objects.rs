//! The compiled programs, and loading them with their maps pinned.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aya::maps::{Map, MapData};
use aya::programs::Program;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader};

use super::CaptureError;

/// A compiled object.
pub(super) struct Object {
    pub(super) name: &'static str,
    bytes: &'static [u8],
}

/// ELF readers want the headers aligned, which a plain `include_bytes!` does not promise.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static NODE_BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
    env!("ZTUNNEL_BPF_OBJECTS"),
    "/node.o"
)));
static POD_BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
    env!("ZTUNNEL_BPF_OBJECTS"),
    "/pod.o"
)));

/// The connect hooks.
pub(super) static NODE: Object = Object {
    name: "node",
    bytes: &NODE_BYTES.0,
};
/// The socket lookup of a pod.
pub(super) static POD: Object = Object {
    name: "pod",
    bytes: &POD_BYTES.0,
};

/// Loads objects. One for the life of the daemon: making it parses the types of the running kernel, megabytes of
/// them, and nothing here is relocated by them.
pub(super) struct Loader(Mutex<EbpfLoader<'static>>);

impl Loader {
    pub(super) fn new() -> Self {
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        Self(Mutex::new(loader))
    }

    /// Loads `object`; maps that are pinned in `pins` already are used as they are.
    pub(super) fn load(&self, object: &Object, pins: &Path) -> Result<Ebpf, CaptureError> {
        // What a panic could leave half-way is the directory, which is set here.
        let mut loader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loader
            .default_map_pin_directory(pins)
            .load(object.bytes)
            .map_err(|source| CaptureError::Load {
                object: object.name,
                source,
            })
    }
}

impl Object {
    pub(super) fn map<T>(&self, ebpf: &mut Ebpf, name: &'static str) -> Result<T, CaptureError>
    where
        T: TryFrom<Map, Error = aya::maps::MapError>,
    {
        let map = ebpf.take_map(name).ok_or(CaptureError::Mismatch {
            object: self.name,
            item: name,
        })?;
        T::try_from(map).map_err(|source| CaptureError::Map { map: name, source })
    }

    pub(super) fn program<'a, T>(
        &self,
        ebpf: &'a mut Ebpf,
        name: &'static str,
    ) -> Result<&'a mut T, CaptureError>
    where
        &'a mut T: TryFrom<&'a mut Program>,
    {
        ebpf.program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(CaptureError::Mismatch {
                object: self.name,
                item: name,
            })
    }
}

/// Pins `link` at `path` in place of the one that may be there, without a moment between the two.
pub(super) fn pin_over(link: FdLink, path: &Path) -> Result<(), CaptureError> {
    let mut new = path.as_os_str().to_owned();
    // bpffs keeps names with a dot in them for itself.
    new.push("_new");
    let new = PathBuf::from(new);
    drop(std::fs::remove_file(&new));
    link.pin(&new).map_err(|source| CaptureError::Pin {
        path: new.clone(),
        source,
    })?;
    std::fs::rename(&new, path).map_err(|source| CaptureError::Path {
        path: path.to_owned(),
        source,
    })
}

/// A map as the loader hands it over.
pub(super) type Owned = MapData;
