//! A checkpoint as `torch.save` wrote it before it wrote zip files: five pickles, and the storages one after the other.

use std::collections::BTreeMap;

use super::pickle::{Pickle, Place, Value};

/// The first pickle of every such file.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;

/// A checkpoint in memory. Tensors are looked at when they are asked for.
pub struct Checkpoint<'a> {
    table: Pickle,
    entries: BTreeMap<String, Place>,
    storages: BTreeMap<String, &'a [u8]>,
}

/// Where a tensor's numbers are.
struct Layout<'p> {
    storage: &'p str,
    kind: &'p str,
    /// In numbers, not in bytes.
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

fn known(name: &str) -> bool {
    matches!(name, "collections.OrderedDict" | "torch._utils._rebuild_tensor_v2")
        || bytes_each(name).is_some()
}

/// Bytes of a number in a storage of this kind.
fn bytes_each(kind: &str) -> Option<usize> {
    match kind.strip_prefix("torch.")?.strip_suffix("Storage")? {
        "Byte" | "Char" | "Bool" => Some(1),
        "Short" | "Half" | "BFloat16" => Some(2),
        "Int" | "Float" => Some(4),
        "Long" | "Double" => Some(8),
        _ => None,
    }
}

impl<'a> Checkpoint<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.starts_with(b"PK") {
            return Err(
                "it is a checkpoint in the form of a zip file, and only the form before it is read; \
                        `torch.save(..., _use_new_zipfile_serialization=False)` writes it"
                    .into(),
            );
        }
        let other = || "it does not begin as a checkpoint of PyTorch does".to_owned();
        let (magic, bytes) = Pickle::read(bytes, known).map_err(|_| other())?;
        if !matches!(magic.root(), Value::Long(digits) if *digits == MAGIC) {
            return Err(other());
        }
        let (version, bytes) = Pickle::read(bytes, known)?;
        if *version.root() != Value::Int(VERSION) {
            return Err(format!("it is a checkpoint of another version than {VERSION}"));
        }
        let (system, bytes) = Pickle::read(bytes, known)?;
        if !little_endian(&system) {
            return Err("it was not written by a little-endian machine".into());
        }
        let (table, bytes) = Pickle::read(bytes, known)?;
        let (keys, bytes) = Pickle::read(bytes, known)?;

        let Value::Dict(pairs) = table.root() else { return Err("it is not a table of tensors".into()) };
        let mut entries = BTreeMap::new();
        for &(key, value) in pairs {
            let Value::Text(name) = table.at(key) else {
                return Err("it has a tensor without a name".into());
            };
            if entries.insert(name.clone(), value).is_some() {
                return Err(format!("it has the tensor `{name}` twice"));
            }
        }
        let mut kinds = BTreeMap::new();
        for &place in entries.values() {
            let layout = layout(&table, place)?;
            kinds.insert(layout.storage, layout.kind);
        }
        let storages = storages(&keys, &kinds, bytes)?;
        Ok(Self { storages, entries, table })
    }

    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The numbers of a tensor, which has to have this shape, in row-major order.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let place = *self.entries.get(name).ok_or_else(|| format!("it has no tensor `{name}`"))?;
        let about = |reason: String| format!("its tensor `{name}`: {reason}");
        let layout = layout(&self.table, place).map_err(about)?;
        if layout.kind != "torch.FloatStorage" {
            return Err(about(format!("it is a `{}`, and 32-bit floats are needed", layout.kind)));
        }
        if layout.shape != shape {
            return Err(about(format!("it is {:?}, and {shape:?} is needed", layout.shape)));
        }
        let bytes = self.storages.get(layout.storage).copied().unwrap_or_default();
        let (numbers, _) = bytes.as_chunks::<4>();
        gather(numbers, &layout).ok_or_else(|| about("it reaches beyond its storage".into()))
    }
}

/// The numbers at `offset + Σ index × stride`, the last index running first.
fn gather(numbers: &[[u8; 4]], layout: &Layout<'_>) -> Option<Vec<f32>> {
    // The furthest number is looked at first: then all are there, and no more are read than the storage has.
    let mut last = layout.offset;
    for (side, stride) in layout.shape.iter().zip(&layout.strides) {
        last = last.checked_add(side.checked_sub(1)?.checked_mul(*stride)?)?;
    }
    let count = layout.shape.iter().try_fold(1_usize, |count, side| count.checked_mul(*side))?;
    if last >= numbers.len() || count > numbers.len() {
        return None;
    }
    let mut index = vec![0; layout.shape.len()];
    let mut at = layout.offset;
    let mut out = Vec::with_capacity(count);
    for _ in 0..count {
        out.push(f32::from_le_bytes(numbers[at]));
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += layout.strides[axis];
            if index[axis] < layout.shape[axis] {
                break;
            }
            at -= layout.strides[axis] * layout.shape[axis];
            index[axis] = 0;
        }
    }
    Some(out)
}

fn little_endian(system: &Pickle) -> bool {
    let Value::Dict(pairs) = system.root() else { return false };
    pairs.iter().any(|(key, value)| {
        *system.at(*key) == Value::Text("little_endian".into()) && *system.at(*value) == Value::Bool(true)
    })
}

/// `_rebuild_tensor_v2(("storage", kind, key, device, count, None), offset, shape, strides, ...)`
fn layout(table: &Pickle, place: Place) -> Result<Layout<'_>, String> {
    read_layout(table, place).ok_or_else(|| "it is not a plain tensor".to_owned())
}

fn read_layout(table: &Pickle, place: Place) -> Option<Layout<'_>> {
    let tuple = |place: Place| match table.at(place) {
        Value::Tuple(items) => Some(items),
        _ => None,
    };
    let text = |place: Place| match table.at(place) {
        Value::Text(text) | Value::Name(text) => Some(text.as_str()),
        _ => None,
    };
    let length = |place: Place| match table.at(place) {
        Value::Int(number) => usize::try_from(*number).ok(),
        _ => None,
    };
    let Value::Call { of, with } = table.at(place) else { return None };
    if text(*of)? != "torch._utils._rebuild_tensor_v2" {
        return None;
    }
    let [stored, offset, shape, strides, ..] = tuple(*with)?[..] else { return None };
    let Value::Elsewhere(id) = table.at(stored) else { return None };
    let [word, kind, storage, _device, _count, view] = tuple(*id)?[..] else { return None };
    if text(word)? != "storage" || *table.at(view) != Value::None {
        return None;
    }
    let lengths = |place: Place| tuple(place)?.iter().map(|&place| length(place)).collect::<Option<Vec<_>>>();
    let (shape, strides) = (lengths(shape)?, lengths(strides)?);
    if shape.len() != strides.len() || shape.len() > 8 {
        return None;
    }
    Some(Layout { storage: text(storage)?, kind: text(kind)?, offset: length(offset)?, shape, strides })
}

/// Each is as many numbers as the 8 bytes before it say, in the order of `keys`.
fn storages<'a>(
    keys: &Pickle,
    kinds: &BTreeMap<&str, &str>,
    mut bytes: &'a [u8],
) -> Result<BTreeMap<String, &'a [u8]>, String> {
    let Value::List(places) = keys.root() else { return Err("it has no list of storages".into()) };
    let mut storages = BTreeMap::new();
    for &place in places {
        let Value::Text(key) = keys.at(place) else { return Err("it has a storage without a name".into()) };
        let each = kinds.get(key.as_str()).and_then(|kind| bytes_each(kind));
        let each = each.ok_or("it has a storage that no tensor describes")?;
        let split = bytes.split_first_chunk::<8>().and_then(|(count, rest)| {
            let length = usize::try_from(i64::from_le_bytes(*count)).ok()?.checked_mul(each)?;
            rest.split_at_checked(length)
        });
        let (storage, rest) = split.ok_or("it ends in the middle of a storage")?;
        bytes = rest;
        if storages.insert(key.clone(), storage).is_some() {
            return Err("it has a storage twice".into());
        }
    }
    Ok(storages)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Name, shape, strides, storage.
    type Saved<'a> = (&'a str, &'a [usize], &'a [usize], &'a [f32]);

    /// A checkpoint of these tensors, as `torch.save` wrote it.
    fn saved(tensors: &[Saved<'_>]) -> Vec<u8> {
        let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        let number = |number: usize| [b"J", &(number as i32).to_le_bytes()[..]].concat();
        let numbers = |all: &[usize]| {
            [b"(".to_vec(), all.iter().flat_map(|it| number(*it)).collect(), b"t".to_vec()].concat()
        };
        let mut out =
            b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}".to_vec();
        out.extend(
            [text("little_endian"), b"\x88s.\x80\x02ccollections\nOrderedDict\n)R(".to_vec()].concat(),
        );
        for (index, (name, shape, strides, storage)) in tensors.iter().enumerate() {
            out.extend(text(name));
            out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            out.extend(
                [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&index.to_string()), text("cpu")]
                    .concat(),
            );
            out.extend(
                [number(storage.len()), b"NtQK\x00".to_vec(), numbers(shape), numbers(strides)].concat(),
            );
            out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        }
        out.extend(b"u.\x80\x02](");
        (0..tensors.len()).for_each(|index| out.extend(text(&index.to_string())));
        out.extend(b"e.");
        for (.., storage) in tensors {
            out.extend((storage.len() as u64).to_le_bytes());
            out.extend(storage.iter().flat_map(|number| number.to_le_bytes()));
        }
        out
    }

    const SIX: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

    #[test]
    fn strides_are_honoured() {
        let file = saved(&[
            ("rows", &[2, 3], &[3, 1], &SIX),
            ("columns", &[2, 3], &[1, 2], &SIX),
            ("one", &[], &[], &[7.0]),
        ]);
        let checkpoint = Checkpoint::read(&file).unwrap();
        assert_eq!(checkpoint.floats("rows", &[2, 3]).unwrap(), SIX);
        assert_eq!(checkpoint.floats("columns", &[2, 3]).unwrap(), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert_eq!(checkpoint.floats("one", &[]).unwrap(), [7.0]);
        assert!(checkpoint.has("one") && !checkpoint.has("two"));
    }

    #[test]
    fn what_reaches_beyond_its_storage_is_refused() {
        let far = usize::try_from(i32::MAX).unwrap();
        for (shape, strides) in [
            (&[7][..], &[1][..]),
            (&[2, 3], &[4, 1]),
            (&[far, far], &[far, far]),
            (&[far, 3], &[0, 1]),
            (&[0], &[1]),
        ] {
            let file = saved(&[("t", shape, strides, &SIX)]);
            let refused = Checkpoint::read(&file).unwrap().floats("t", shape).unwrap_err();
            assert!(refused.contains("beyond its storage"), "{refused}");
        }
        let file = saved(&[("t", &[6], &[1], &SIX)]);
        let checkpoint = Checkpoint::read(&file).unwrap();
        assert!(checkpoint.floats("t", &[2, 3]).unwrap_err().contains("it is [6], and [2, 3] is needed"));
        assert!(checkpoint.floats("u", &[6]).unwrap_err().contains("no tensor `u`"));
        assert!(
            Checkpoint::read(&file[..file.len() - 1]).err().unwrap().contains("in the middle of a storage")
        );
    }

    #[test]
    fn another_kind_of_file_is_named() {
        let refusal = |bytes: &[u8]| Checkpoint::read(bytes).err().unwrap();
        assert!(refusal(b"PK\x03\x04").contains("in the form of a zip file"));
        assert!(refusal(b"GGUF").contains("does not begin as a checkpoint"));
        assert!(refusal(b"\x80\x02K\x01.").contains("does not begin as a checkpoint"));
    }

    proptest! {
        #[test]
        fn a_damaged_checkpoint_is_read_or_refused(at in 0_usize..600, byte: u8) {
            let mut file = saved(&[("a", &[2, 3], &[3, 1], &SIX), ("b", &[3], &[2], &SIX)]);
            let length = file.len();
            file[at % length] = byte;
            if let Ok(checkpoint) = Checkpoint::read(&file) {
                let _ = checkpoint.floats("a", &[2, 3]);
                let _ = checkpoint.floats("b", &[3]);
            }
        }
    }
}
