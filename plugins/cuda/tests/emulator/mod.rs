//! A device that is none: `cuda.h` stands in for CUDA, and the source of a program becomes one for the processor, which is
//! told what to do through a pipe.

use crate::support::{has_gpu, runtimes};
use backplane_cuda::{Argument, Bounds, Compiler, Driver, Gpu, Nvidia, Program, Settings, Size, named};
use backplane_plugin::prelude::*;
use backplane_plugin::{Device, Ready};
use cudarc::driver::sys::CUresult;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// What goes wrong next, and with what: taken by the first device that is asked for it.
static FAULT: Mutex<Option<(&str, CUresult)>> = Mutex::new(None);

/// Makes the next call of this kind fail as the driver would: `alloc`, `write`, `read`, `copy`, `zero`, `launch`.
#[allow(dead_code, reason = "not every test has something fail")]
pub fn fail(what: &'static str, code: CUresult) {
    *FAULT.lock().unwrap() = Some((what, code));
}

/// Memory that others can be told of, by its address: whose it is, and its number there.
type Lasting = HashMap<u64, (Weak<Pipes>, u64)>;

static LASTING: Mutex<Option<Lasting>> = Mutex::new(None);

/// What crossed to the host of it, what was copied from one context to another, and what was read where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub reads: u32,
    pub copies: u32,
    pub adoptions: u32,
}

static TRAFFIC: Mutex<Traffic> = Mutex::new(Traffic { reads: 0, copies: 0, adoptions: 0 });

/// Since the last time.
#[allow(dead_code, reason = "not every test looks")]
pub fn traffic() -> Traffic {
    std::mem::take(&mut TRAFFIC.lock().unwrap())
}

/// Has the plugins of this process take the processor for a device; or, in [`again_on_the_device`], the device that is here.
#[allow(dead_code, reason = "not every test goes through a plugin")]
pub fn stand_in() {
    let _ = backplane_cuda::STAND_IN.set(if is_on_the_device() { nvidia() } else { Arc::new(Processor) });
}

const ON_THE_DEVICE: &str = "BACKPLANE_TEST_ON_THE_DEVICE";

/// Whether this is a run of [`again_on_the_device`], where nothing can be made to fail and nothing is counted.
#[allow(dead_code, reason = "not every test counts")]
pub fn is_on_the_device() -> bool {
    std::env::var_os(ON_THE_DEVICE).is_some()
}

/// Runs tests of this program once more, on the device, where there is one.
#[allow(dead_code, reason = "not every test goes through a plugin")]
pub fn again_on_the_device(tests: &[&str]) {
    if !has_gpu() {
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    let ran = again.arg("--exact").args(tests).env(ON_THE_DEVICE, "1").output().unwrap();
    let said = [ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(ran.status.success() && said.contains(&format!("{} passed", tests.len())), "{said}");
}

/// What kernels are tried on: the processor, and the device if there is one.
#[allow(dead_code, reason = "not every test loads kernels itself")]
pub fn drivers() -> Vec<Arc<dyn Driver>> {
    let mut drivers: Vec<Arc<dyn Driver>> = vec![Arc::new(Processor)];
    if has_gpu() {
        drivers.push(nvidia());
    }
    drivers
}

fn nvidia() -> Arc<dyn Driver> {
    let settings = Settings::of(&json!({ "runtimes": runtimes() })).unwrap();
    Arc::new(Nvidia { compiler: Compiler::new(settings), ordinal: 0 })
}

/// The processor, as devices.
pub struct Processor;

impl Driver for Processor {
    fn check(&self, _compiled: bool) -> std::result::Result<(), (BidReason, Error)> {
        Ok(())
    }

    fn device(&self) -> Device {
        Device::cuda(0)
    }

    fn load(&self, program: &Program) -> Result<Arc<dyn Gpu>> {
        let mut child =
            Command::new(build(program)).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pipes = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Ok(Arc::new(Emulated {
            child: Mutex::new(child),
            pipes: Arc::new(Pipes { both: Mutex::new(pipes), broken: Mutex::new(None) }),
            next: AtomicU64::new(1),
            same: Mutex::default(),
        }))
    }
}

/// A program of its own for each context: what breaks there breaks nothing else.
struct Emulated {
    child: Mutex<Child>,
    pipes: Arc<Pipes>,
    next: AtomicU64,
    /// Numbers that stand for the memory of another, which was adopted.
    same: Mutex<HashMap<u64, u64>>,
}

/// The way to the program.
struct Pipes {
    both: Mutex<(ChildStdin, ChildStdout)>,
    /// What cannot be mended is said by every later call.
    broken: Mutex<Option<CUresult>>,
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Emulated {
    fn ask(&self, what: &str, command: &[u8], more: &[u8], answer: usize) -> Result<Vec<u8>> {
        self.pipes.ask(what, command, more, answer)
    }

    fn number(&self, memory: u64) -> u64 {
        self.same.lock().unwrap().get(&memory).copied().unwrap_or(memory)
    }
}

impl Pipes {
    fn ask(&self, what: &str, command: &[u8], more: &[u8], answer: usize) -> Result<Vec<u8>> {
        let mut broken = self.broken.lock().unwrap();
        if let Some(code) = *broken {
            return Err(named(code));
        }
        if let Some((_, code)) = FAULT.lock().unwrap().take_if(|(when, _)| *when == what) {
            let error = named(code);
            *broken = error.fatal.then_some(code);
            return Err(error);
        }
        let mut pipes = self.both.lock().unwrap();
        let mut bytes = vec![0; answer + 1];
        let asked =
            pipes.0.write_all(command).and_then(|()| pipes.0.write_all(more)).and_then(|()| pipes.0.flush());
        asked.and_then(|()| pipes.1.read_exact(&mut bytes)).expect("the kernel broke its rules: see above");
        assert_eq!(bytes.pop(), Some(b'.'));
        Ok(bytes)
    }
}

/// A command with its numbers.
fn command(letter: u8, numbers: &[u64]) -> Vec<u8> {
    [&[letter][..], &numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>()].concat()
}

impl Gpu for Emulated {
    fn name(&self) -> &str {
        "a processor"
    }

    fn bounds(&self) -> Bounds {
        Bounds::EVERY
    }

    fn device(&self) -> Device {
        Device::cuda(0)
    }

    fn alloc_lasting(&self, bytes: usize) -> Result<u64> {
        let number = self.alloc(bytes)?;
        let mut lasting = LASTING.lock().unwrap();
        let lasting = lasting.get_or_insert_default();
        // Nowhere that this process could read.
        let address = 0xD0_0000_0000 + ((lasting.len() as u64) << 20);
        lasting.insert(address, (Arc::downgrade(&self.pipes), number));
        Ok(number)
    }

    fn address(&self, memory: u64) -> Result<u64> {
        let lasting = LASTING.lock().unwrap();
        let own = |(pipes, number): &(Weak<Pipes>, u64)| {
            *number == memory && Weak::as_ptr(pipes) == Arc::as_ptr(&self.pipes)
        };
        Ok(*lasting.as_ref().unwrap().iter().find(|(_, memory)| own(memory)).unwrap().0)
    }

    fn adopt(&self, address: u64, bytes: usize, ready: Ready) -> Result<u64> {
        assert_eq!(ready, Ready::Now);
        let (owner, number) = LASTING.lock().unwrap().as_ref().unwrap()[&address].clone();
        let owner = owner.upgrade().expect("memory that is there has an owner");
        if Arc::ptr_eq(&owner, &self.pipes) {
            TRAFFIC.lock().unwrap().adoptions += 1;
            let stands_for = self.next.fetch_add(1, Ordering::Relaxed);
            self.same.lock().unwrap().insert(stands_for, number);
            return Ok(stands_for);
        }
        TRAFFIC.lock().unwrap().copies += 1;
        let copy = owner.ask("peer", &command(b'R', &[number, 0, bytes as u64]), &[], bytes)?;
        let own = self.alloc(bytes)?;
        self.write(own, 0, &copy).map(|()| own)
    }

    fn wait(&self) -> Result<()> {
        // There is no memory 0: nothing is given back.
        self.ask("wait", &command(b'F', &[0]), &[], 0).map(drop)
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.ask("alloc", &command(b'A', &[number, bytes as u64]), &[], 0).map(|_| number)
    }

    fn free(&self, memory: u64) {
        if self.same.lock().unwrap().remove(&memory).is_none() {
            let _ = self.ask("free", &command(b'F', &[memory]), &[], 0);
        }
    }

    fn zero(&self, memory: u64) -> Result<()> {
        self.ask("zero", &command(b'Z', &[memory]), &[], 0).map(drop)
    }

    fn write(&self, memory: u64, offset: usize, bytes: &[u8]) -> Result<()> {
        self.ask("write", &command(b'W', &[memory, offset as u64, bytes.len() as u64]), bytes, 0).map(drop)
    }

    fn read(&self, memory: u64, offset: usize, bytes: usize) -> Result<Vec<u8>> {
        TRAFFIC.lock().unwrap().reads += 1;
        self.ask("read", &command(b'R', &[self.number(memory), offset as u64, bytes as u64]), &[], bytes)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.ask("copy", &command(b'C', &[from, to, bytes as u64]), &[], 0).map(drop)
    }

    fn launch(&self, entry: &str, size: Size, arguments: &[Argument]) -> Result<()> {
        assert_eq!(size.shared, 0, "there is no dynamic shared memory here");
        let mut asked = command(b'L', &[entry.len() as u64]);
        asked.extend(entry.bytes());
        asked.extend([size.grid, size.block].as_flattened().iter().flat_map(|side| side.to_le_bytes()));
        asked.extend((arguments.len() as u64).to_le_bytes());
        for argument in arguments {
            let (is_memory, number) = match *argument {
                Argument::Memory(number) => (1_u64, self.number(number)),
                Argument::Number(number) => (0, number as u64),
            };
            asked.extend([is_memory, number].iter().flat_map(|number| number.to_le_bytes()));
        }
        self.ask("launch", &asked, &[], 0).map(drop)
    }
}

/// Compiles with the compiler that llama.cpp is built with.
fn build(program: &Program) -> PathBuf {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/cuda.h");
    let mut text = String::new();
    let mut line = |more: String| text.push_str(&(more + "\n"));
    program.defines.iter().for_each(|(name, value)| line(format!("#define {name} {value}")));
    line(format!("#include {header:?}\n{}\nint main() {{ return serve({{", program.source));
    program.entries.iter().for_each(|name| line(format!("entry({name:?}, {name}),")));
    line("}); }".to_owned());
    // One that is there already is the same: its name is that of its text.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("kernel-{:016x}", hash(&(&text, std::fs::read(header).unwrap()))));
    if path.exists() {
        return path;
    }
    let place = tempfile::tempdir_in(folder).unwrap();
    let (source, made) = (place.path().join("kernel.cc"), place.path().join("kernel"));
    std::fs::write(&source, &text).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-ffp-contract=off", "-w", "-o"])
        .args([&made, &source])
        .output()
        .unwrap();
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(made, &path).unwrap();
    path
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
