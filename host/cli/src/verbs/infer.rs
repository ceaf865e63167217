//! `infer`: any capability, known to this program or not.

use crate::args::Infer;
use crate::client::segment;
use crate::context::Context;
use crate::exit::{Failure, Result};
use crate::sse::Events;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

pub fn run(context: &Context, args: &Infer) -> Result<()> {
    let body = body(args)?;
    let path = format!("/v1/capabilities/{}", segment(&args.capability));
    let client = context.client()?;
    if args.stream {
        return stream(context, client.stream(&path, &body)?);
    }
    let answer = client.post(&path, &body)?;
    if context.out.json {
        context.out.value(&answer);
        return Ok(());
    }
    let pieces = answer["chunks"].as_array().into_iter().flatten();
    for piece in pieces.chain(answer.get("result").filter(|result| !result.is_null())) {
        context.out.line(piece.to_string());
    }
    for tensor in answer["tensors"].as_array().into_iter().flatten() {
        context.out.line(tensor.to_string());
    }
    Ok(())
}

fn body(args: &Infer) -> Result<Value> {
    let params = match args.params.as_deref() {
        None => json!({}),
        Some(text) => {
            let text = match text.strip_prefix('@') {
                Some(file) => std::fs::read_to_string(file)
                    .map_err(|error| Failure::io("read", Path::new(file), &error))?,
                None if text == "-" => {
                    let mut piped = String::new();
                    let read = std::io::stdin().read_to_string(&mut piped);
                    read.map_err(|error| {
                        Failure::usage(format!("standard input cannot be read as text: {error}"))
                    })?;
                    piped
                }
                None => text.to_owned(),
            };
            serde_json::from_str(&text)
                .map_err(|error| Failure::usage(format!("`--params` is not JSON: {error}")))?
        }
    };
    if !params.is_object() {
        return Err(Failure::usage("`--params` must be a JSON object, such as `{\"text\": \"hello\"}`"));
    }
    let mut body = json!({ "params": params });
    if let Some(model) = &args.model {
        body["model"] = model.as_str().into();
    }
    if !args.tensors.is_empty() {
        body["tensors"] = args.tensors.iter().map(|text| tensor(text)).collect::<Result<Vec<_>>>()?.into();
    }
    if args.stream {
        body["stream"] = true.into();
    }
    Ok(body)
}

/// `x=FP32:2,3:[1,2,3,4,5,6]` or `x=FP32:2,3:@file`.
fn tensor(text: &str) -> Result<Value> {
    let wrong = |why: &str| {
        Failure::usage(format!("`--tensor {}` {why}", crate::output::printable(text)))
            .next("write it as in `x=FP32:2,2:[1,2,3,4]` or `x=FP32:2,2:@file.bin`")
    };
    let (name, rest) = text.split_once('=').ok_or_else(|| wrong("has no `=`"))?;
    let mut parts = rest.splitn(3, ':');
    let (Some(dtype), Some(shape), Some(data)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong("needs a dtype, a shape and data"));
    };
    let sides = shape.split(',').map(str::trim).filter(|side| !side.is_empty());
    let shape: Vec<u64> = sides
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|_| wrong("has a shape that is not numbers"))?;
    let mut tensor = json!({ "name": name, "datatype": dtype.to_uppercase(), "shape": shape });
    match data.strip_prefix('@') {
        Some(file) => {
            let bytes = std::fs::read(file).map_err(|error| Failure::io("read", Path::new(file), &error))?;
            tensor["base64"] = STANDARD.encode(bytes).into();
        }
        None => {
            let data: Value =
                serde_json::from_str(data).map_err(|_| wrong("has data that is neither JSON nor `@FILE`"))?;
            // A single number is a tensor of one element.
            tensor["data"] = if data.is_array() { data } else { json!([data]) };
        }
    }
    Ok(tensor)
}

fn stream(context: &Context, mut response: reqwest::blocking::Response) -> Result<()> {
    let mut events = Events::default();
    let mut buffer = [0; 16 << 10];
    let mut ended = false;
    while !context.out.reader_left() {
        let read = response
            .read(&mut buffer)
            .map_err(|error| Failure::failed(format!("the answer broke off: {error}")))?;
        if read == 0 {
            break;
        }
        for event in events.feed(&buffer[..read]) {
            if event == "[DONE]" {
                ended = true;
                continue;
            }
            let event: Value = serde_json::from_str(&event).map_err(|error| {
                Failure::failed(format!("the server sent an event that is not JSON: {error}"))
            })?;
            if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
                return Err(crate::client::failure_of(0, error, ""));
            }
            ended |= event.get("done").is_some();
            if context.out.json {
                context.out.line(event.to_string());
                continue;
            }
            for part in
                event.get("chunk").into_iter().chain(event["tensors"].as_array().into_iter().flatten())
            {
                context.out.line(part.to_string());
            }
        }
    }
    if ended || context.out.reader_left() {
        Ok(())
    } else {
        Err(Failure::failed("the answer broke off before its end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_tensor_has_elements_or_memory() {
        let inline = tensor("x=fp32:2,2:[[1,2],[3,4]]").unwrap();
        assert_eq!(
            inline,
            json!({ "name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4]] })
        );
        assert_eq!(tensor("x=BYTES:1:\"a:b=c\"").unwrap()["data"], json!(["a:b=c"]));
        assert_eq!(tensor("x=INT64::[7]").unwrap()["shape"], json!([]));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        std::fs::write(&path, [0, 0, 128, 63]).unwrap();
        assert_eq!(tensor(&format!("x=FP32:1:@{}", path.display())).unwrap()["base64"], "AACAPw==");
    }

    #[test]
    fn a_slip_is_wrong_usage_and_a_missing_file_is_not_found() {
        for text in ["x", "x=FP32", "x=FP32:2", "x=FP32:a:[1]", "x=FP32:1:one"] {
            assert_eq!(tensor(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
        assert_eq!(tensor("x=FP32:1:@/no/such/file").unwrap_err().exit, Exit::NotFound);
    }
}
