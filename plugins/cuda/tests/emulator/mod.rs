//! Runs kernels on the processor: `cuda.h` stands in for CUDA, and a program is made of it, the kernel and a plan.

use backplane_cuda::{Argument, Bounds, Card, Executor, Plan};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A kernel's source, to be run with a card.
pub struct Emulator<'a> {
    pub source: &'a Path,
    pub card: &'a Card,
}

impl Executor for Emulator<'_> {
    fn bounds(&self) -> Bounds {
        Bounds::EVERY
    }

    fn run(&self, plan: &Plan, inputs: &[&[u8]]) -> backplane_plugin::Result<Vec<Vec<u8>>> {
        let folder = tempfile::tempdir().unwrap();
        let program = build(folder.path(), &self.program(plan));
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It reads all of its inputs before it writes anything.
        let mut pipe = child.stdin.take().unwrap();
        inputs.iter().for_each(|input| pipe.write_all(input).unwrap());
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (mut rest, mut outputs) = (&output.stdout[..], Vec::new());
        for sized in &plan.tensors[inputs.len()..][..self.card.outputs.len()] {
            let (output, more) = rest.split_at(sized.bytes);
            outputs.push(output.to_vec());
            rest = more;
        }
        assert!(rest.is_empty());
        Ok(outputs)
    }
}

impl Emulator<'_> {
    /// A program that reads the inputs, runs the launches in order, and writes the outputs.
    fn program(&self, plan: &Plan) -> String {
        let (inputs, outputs) = (self.card.inputs.len(), self.card.outputs.len());
        let mut program = String::new();
        let mut line = |text: String| program.push_str(&(text + "\n"));
        self.card.defines.iter().for_each(|(name, value)| line(format!("#define {name} {value}")));
        let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/cuda.h");
        line(format!("#include {header:?}\n#include {:?}\nint main() {{", self.source));
        for (place, tensor) in plan.tensors.iter().enumerate() {
            line(format!("Tensor t{place}({});", tensor.bytes));
        }
        (0..inputs).for_each(|place| line(format!("t{place}.read(stdin);")));
        for launch in &plan.launches {
            let arguments: Vec<String> = launch
                .arguments
                .iter()
                .map(|argument| match argument {
                    Argument::Tensor(place) => format!("t{place}"),
                    Argument::Number(number) => format!("{number}LL"),
                })
                .collect();
            let index = |[x, y, z]: [u32; 3]| format!("{{{x}, {y}, {z}}}");
            line(format!(
                "launch({}, {}, [&] {{ {}({}); }});",
                index(launch.grid),
                index(launch.block),
                launch.entry,
                arguments.join(", ")
            ));
        }
        for (place, port) in self.card.ports().enumerate() {
            line(format!("t{place}.check({:?});", port.name));
        }
        (inputs..inputs + outputs).for_each(|place| line(format!("t{place}.write(stdout);")));
        line("}".to_owned());
        program
    }
}

/// Compiles with the compiler that llama.cpp is built with.
fn build(folder: &Path, program: &str) -> PathBuf {
    let (source, built) = (folder.join("kernel.cc"), folder.join("kernel"));
    std::fs::write(&source, program).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-w", "-o"])
        .args([&built, &source])
        .output()
        .unwrap();
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    built
}
