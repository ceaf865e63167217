//! What a file is, by its own bytes: a web page that was saved as `model.gguf` is told from a model before it is installed.

use crate::gguf;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// What is wrong with the file of a model of this format, if anything is: what it looks like instead, or what is missing of
/// it. Of formats that only their plugin knows nothing is said.
pub(crate) fn unlike(path: &Path, format: &str) -> io::Result<Option<String>> {
    let mut file = BufReader::new(File::open(path)?);
    let mut head = Vec::new();
    file.by_ref().take(512).read_to_end(&mut head)?;
    let expected = match format {
        "gguf" if head.starts_with(b"GGUF") => return cut_off(&mut file),
        "gguf" => "a GGUF file",
        "onnx" if is_onnx(&mut file)? => return Ok(None),
        "onnx" => "an ONNX graph",
        _ => return Ok(None),
    };
    Ok(Some(format!("it is not {expected}, but {}", kind(&head))))
}

fn cut_off(file: &mut BufReader<File>) -> io::Result<Option<String>> {
    let length = file.get_ref().metadata()?.len();
    let missing = gguf::missing(file, length)?;
    Ok(missing.map(|needs| {
        let (what, end) = (needs.what, needs.bytes);
        format!("it is cut off: {what} ends at byte {end} and the file has {length}; fetch the whole file")
    }))
}

/// What a file that begins so is, for people.
fn kind(head: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 13] = [
        (b"GGUF", "a GGUF file: a model of format `gguf`"),
        (
            b"version https://git-lfs",
            "the pointer that Git LFS keeps in the place of the file: fetch the file itself",
        ),
        (b"PK\x03\x04", "a zip archive, as PyTorch's checkpoints are"),
        (b"\x80\x02", "a Python pickle, as old checkpoints of PyTorch are"),
        (b"\x1f\x8b", "compressed by gzip"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        (b"\x89HDF", "an HDF5 file, as Keras's weights are"),
        (b"\x7fELF", "a program or a shared library"),
        (b"%PDF", "a PDF document"),
        (b"lmgg", "a model of llama.cpp from before GGUF"),
        (b"fmgg", "a model of llama.cpp from before GGUF"),
        (b"tjgg", "a model of llama.cpp from before GGUF"),
        (b"\xba\x16\x4f\x2f", "a model of fastText"),
    ];
    if head.is_empty() {
        return "empty";
    }
    if let Some((_, what)) = KNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
        return what;
    }
    if head.get(6..).is_some_and(|rest| rest.starts_with(b"\0\0{\"")) {
        return "a safetensors file";
    }
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The last character may be cut.
        Err(error) if head.len() - error.valid_up_to() < 4 => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return "data of another kind",
    };
    let start = text.trim_start().to_ascii_lowercase();
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        "data of another kind"
    } else if start.starts_with("<!doctype html") || start.starts_with("<html") {
        "a web page: the address may need a login, or be that of a page about the file"
    } else if start.starts_with(['{', '[']) {
        "JSON"
    } else {
        "text"
    }
}

/// More members than this the outermost message of no graph has.
const MAX_MEMBERS: usize = 100_000;

/// Whether it is a protobuf message whose members fill the file, one of them the graph (member 7 of `ModelProto`).
fn is_onnx(file: &mut (impl Read + Seek)) -> io::Result<bool> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut at = file.seek(SeekFrom::Start(0))?;
    let mut graph = false;
    for _ in 0..MAX_MEMBERS {
        if at == length {
            return Ok(graph);
        }
        let Some(tag) = varint(file)? else { return Ok(false) };
        let (member, wire) = (tag >> 3, tag & 7);
        let skip = match wire {
            0 => varint(file)?.map(|_| 0),
            1 => Some(8),
            2 => varint(file)?,
            5 => Some(4),
            _ => None,
        };
        let Some(skip) = skip.filter(|_| 0 < member) else { return Ok(false) };
        graph |= member == 7 && wire == 2;
        let here = file.stream_position()?;
        at = match here.checked_add(skip) {
            Some(end) if end <= length => file.seek(SeekFrom::Start(end))?,
            _ => return Ok(false),
        };
    }
    Ok(false)
}

/// `None` where the file ends, or none of 64 bits stands there.
fn varint(file: &mut impl Read) -> io::Result<Option<u64>> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        if file.read(&mut byte)? == 0 {
            return Ok(None);
        }
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn look(bytes: &[u8], format: &str) -> Option<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        unlike(file.path(), format).unwrap()
    }

    /// `ModelProto`: ir_version 8, producer_name "me", a graph of four bytes.
    const GRAPH: &[u8] = b"\x08\x08\x12\x02me\x3a\x04\x12\x02ab";

    #[test]
    fn a_model_is_let_in_and_what_else_it_is_is_named() {
        let gguf = crate::gguf::tests::file();
        assert_eq!(look(&gguf, "gguf"), None);
        let cut = look(&gguf[..gguf.len() / 2], "gguf").unwrap();
        assert!(
            cut.starts_with("it is cut off: ") && cut.contains(&format!("the file has {}", gguf.len() / 2)),
            "{cut}"
        );
        assert_eq!(look(GRAPH, "onnx"), None);
        assert_eq!(look(b"anything", "fasttext"), None, "its plugin knows");
        for (bytes, word) in [
            (&b""[..], "empty"),
            (b"<!DOCTYPE html><html>", "web page"),
            (b"  <html lang=en>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS"),
            (b"PK\x03\x04\x14", "zip"),
            (b"\x48\x01\0\0\0\0\0\0{\"__metadata__\":{}", "safetensors"),
            (b"{\"a\": 1}", "JSON"),
            (b"hello there", "text"),
            ("größ".as_bytes(), "text"),
            (b"\xff\xfe\0\x01 and more", "another kind"),
        ] {
            for format in ["gguf", "onnx"] {
                let told = look(bytes, format).unwrap_or_default();
                assert!(told.contains(word), "{format}, {bytes:?}: {told}");
            }
        }
        assert!(look(b"GGUF\x03\0\0\0", "onnx").unwrap().contains("`gguf`"));
        assert!(look(GRAPH, "gguf").is_some());
    }

    #[test]
    fn a_graph_that_is_cut_or_has_no_graph_is_none() {
        for end in 0..GRAPH.len() {
            assert!(look(&GRAPH[..end], "onnx").is_some(), "cut at {end}");
        }
        assert!(look(b"\x08\x08", "onnx").is_some(), "no graph");
        assert!(look(&[GRAPH, b"\x07"].concat(), "onnx").is_some(), "a member of no kind");
        assert_eq!(look(&[GRAPH, b"\xa2\x01\x01x"].concat(), "onnx"), None, "one that came later");
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            for format in ["gguf", "onnx", "vision"] {
                let told = look(&bytes, format);
                prop_assert!(told.is_none_or(|told| told.starts_with("it is not a") || told.starts_with("it is cut off")));
            }
        }
    }
}
