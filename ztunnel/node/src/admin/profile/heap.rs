//! Samples of the heap as a profile for `go tool pprof`.
//!
//! jemalloc tells them as text: for each stack that allocated something, its addresses, then how many of the samples from
//! there are in use and how large they are. jemalloc_pprof could translate that, but it makes every crate of the program
//! parse protobuf without a limit of depth, and so lets a control plane overflow our stack.

use std::collections::HashMap;
use std::ffi::c_void;

use pprof::protos::{Function, Line, Location, Message as _, Profile, Sample, ValueType};

/// What cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadSamples {
    #[error("samples begin with {0:?}, not with heap_v2 and a rate")]
    Head(String),
    #[error("line {0:?} is no stack of addresses")]
    Stack(String),
}

/// Functions of the allocator itself, which are at the end of each stack and tell nothing.
const ALLOCATOR: &str = "_rjem_.*|prof_.*|imalloc.*|i[rx]*alloct?.*|do_rallocx|__rust_(re)?alloc.*";

/// Translates `text`.
pub(super) fn profile(text: &str) -> Result<Vec<u8>, BadSamples> {
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let rate: f64 = head
        .strip_prefix("heap_v2/")
        .and_then(|rate| rate.parse().ok())
        .ok_or_else(|| BadSamples::Head(head.into()))?;
    let mut told = Told::new(rate);
    let mut stack = None;
    for line in lines {
        if line.starts_with("MAPPED_LIBRARIES") {
            break;
        }
        if let Some(addresses) = line.strip_prefix('@') {
            let addresses = addresses.split_whitespace().map(address);
            let addresses: Option<Vec<u64>> = addresses.collect();
            stack = Some(addresses.ok_or_else(|| BadSamples::Stack(line.into()))?);
        } else if let (Some(counts), Some(_)) = (line.trim().strip_prefix("t*:"), &stack)
            && let Some((objects, bytes)) = in_use(counts)
        {
            told.add(stack.take().unwrap_or_default(), objects, bytes);
        }
    }
    Ok(told.profile.encode_to_vec())
}

fn address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Of `objects: bytes [all objects: all bytes]`, the first two.
fn in_use(counts: &str) -> Option<(f64, f64)> {
    let (objects, rest) = counts.split_once(':')?;
    let (bytes, _) = rest.split_once('[')?;
    Some((objects.trim().parse().ok()?, bytes.trim().parse().ok()?))
}

struct Told {
    /// Bytes between two samples, on average.
    rate: f64,
    profile: Profile,
    strings: HashMap<String, i64>,
    locations: HashMap<u64, u64>,
    functions: HashMap<(String, String), u64>,
}

impl Told {
    fn new(rate: f64) -> Self {
        let mut told = Self {
            rate,
            profile: Profile::default(),
            strings: HashMap::new(),
            locations: HashMap::new(),
            functions: HashMap::new(),
        };
        // The format wants the empty string to be the first.
        told.string("");
        for (ty, unit) in [("inuse_objects", "count"), ("inuse_space", "bytes")] {
            let (ty, unit) = (told.string(ty), told.string(unit));
            told.profile.sample_type.push(ValueType { ty, unit });
        }
        told.profile.default_sample_type = told.string("inuse_space");
        told.profile.drop_frames = told.string(ALLOCATOR);
        told
    }

    fn add(&mut self, stack: Vec<u64>, objects: f64, bytes: f64) {
        if objects <= 0.0 {
            return;
        }
        // A sample is taken of what is allocated at every so many bytes, so small objects are seldom among them.
        let seen = 1.0 - (-(bytes / objects) / self.rate).exp();
        let scaled = |value: f64| (value / seen) as i64;
        let location_id = stack.into_iter().map(|at| self.location(at)).collect();
        self.profile.sample.push(Sample {
            location_id,
            value: vec![scaled(objects), scaled(bytes)],
            label: Vec::new(),
        });
    }

    fn location(&mut self, address: u64) -> u64 {
        if let Some(id) = self.locations.get(&address) {
            return *id;
        }
        let id = self.locations.len() as u64 + 1;
        self.locations.insert(address, id);
        let mut line = Vec::new();
        // The address is where the call returns to, and is taken for that.
        backtrace::resolve(address as usize as *mut c_void, |symbol| {
            let name = symbol
                .name()
                .map_or_else(String::new, |name| format!("{name:#}"));
            let file = symbol.filename();
            let file = file.map_or_else(String::new, |file| file.display().to_string());
            line.push(Line {
                function_id: self.function(name, file),
                line: symbol.lineno().unwrap_or(0).into(),
            });
        });
        self.profile.location.push(Location {
            id,
            address,
            line,
            ..Location::default()
        });
        id
    }

    fn function(&mut self, name: String, file: String) -> u64 {
        let key = (name, file);
        if let Some(id) = self.functions.get(&key) {
            return *id;
        }
        let id = self.functions.len() as u64 + 1;
        let (name, filename) = (self.string(&key.0), self.string(&key.1));
        self.functions.insert(key, id);
        self.profile.function.push(Function {
            id,
            name,
            system_name: name,
            filename,
            start_line: 0,
        });
        id
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(at) = self.strings.get(text) {
            return *at;
        }
        let at = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(stack: &str) -> String {
        format!(
            "heap_v2/524288\n  t*: 3: 1049600 [0: 0]\n  t0: 3: 1049600 [0: 0]\n{stack}  t*: 2: 1048576 [5: 9]\n  t0: 2: 1048576 [5: 9]\n@ 0x10 0x20\n  t*: 1: 1024 [0: 0]\n\nMAPPED_LIBRARIES:\n@ 0x1\n"
        )
    }

    #[test]
    fn a_stack_is_told_with_its_functions_and_its_share_of_the_heap() {
        let here = a_stack_is_told_with_its_functions_and_its_share_of_the_heap as *const () as u64;
        let profile = profile(&text(&format!("@ {:#x} 0x20\n", here + 1))).unwrap();
        let profile = Profile::decode(&profile[..]).unwrap();
        let [large, small] = &profile.sample[..] else {
            panic!("two stacks: {:?}", profile.sample);
        };
        // One of 512 KiB is found with a chance of 1 - 1/e, one of 1 KiB hardly ever.
        assert_eq!(large.value, [3, 1_658_822]);
        assert!((512..=513).contains(&small.value[0]), "{small:?}");
        assert_eq!(large.location_id[1], small.location_id[1]);
        let names: Vec<&str> = profile
            .function
            .iter()
            .map(|function| &*profile.string_table[function.name as usize])
            .collect();
        assert!(
            names.iter().any(|name| name.contains("a_stack_is_told")),
            "{names:?}"
        );
        assert_eq!(profile.string_table[0], "");
    }

    #[test]
    fn what_is_no_heap_is_refused() {
        assert!(matches!(profile("heap_v3/1\n"), Err(BadSamples::Head(_))));
        assert!(matches!(
            profile(&text("@ 10\n")),
            Err(BadSamples::Stack(_))
        ));
        assert!(matches!(profile(""), Err(BadSamples::Head(_))));
    }
}
