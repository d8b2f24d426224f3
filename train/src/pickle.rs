//! PyTorch's `.pt` files, as `torch.save` writes state dictionaries: a zip of a pickle and of the tensors' bytes.
//! The pickle is read, never run: what it calls is looked at by name, and only what makes tensors and dictionaries is known.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use half::{bf16, f16};
use zip::ZipArchive;

use crate::{Error, Result};

/// The float tensors of a `.pt` file by name, in row-major order.
pub fn read_tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let wrong = |reason: &str| Error::Pickle { path: path.to_path_buf(), reason: reason.to_string() };
    let file = File::open(path).map_err(Error::io(path))?;
    let mut zip = ZipArchive::new(file).map_err(|_| wrong("it is not a file that torch.save of PyTorch 1.6 or later wrote"))?;
    let names: Vec<String> = zip.file_names().filter_map(|name| name.ok().map(|name| name.into_owned())).collect();
    let is_script = names.iter().any(|name| name.ends_with("/constants.pkl"));
    let pickle = names.into_iter().find(|name| name.ends_with("/data.pkl"));
    let pickle = pickle.ok_or_else(|| wrong("it holds no data.pkl, in which torch.save writes what it saves"))?;
    let folder = pickle.trim_end_matches("data.pkl").to_string();
    let mut bytes = Vec::new();
    zip.by_name(&pickle).map_err(|e| wrong(&e.to_string()))?.read_to_end(&mut bytes).map_err(Error::io(path))?;
    let top = Machine { rest: &bytes, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() }.run().map_err(|e| wrong(&e))?;

    // open_clip's checkpoints have the weights under `state_dict`, beside the optimizer; others call them `model`.
    let inner = ["state_dict", "model", "model_state_dict"].iter().find_map(|key| top.get(key).filter(Value::is_dict));
    let entries = match inner.unwrap_or_else(|| top.clone()) {
        // A TorchScript archive is a tree of modules, whose attributes are its entries.
        state if is_script => state.flat(),
        Value::Dict(entries) => entries.borrow().clone(),
        _ => return Err(wrong("it holds no state dictionary: save one with torch.save(model.state_dict(), path)")),
    };
    if !entries.iter().any(|(_, value)| matches!(value, Value::Tensor(_))) {
        let keys = entries.iter().filter_map(|(key, _)| key.text()).take(8).map(|key| format!("'{key}'")).collect::<Vec<_>>().join(", ");
        return Err(wrong(&format!("expected parameters at its top, or under 'state_dict' or 'model', got {keys}")));
    }
    let mut storages: HashMap<Rc<str>, Vec<u8>> = HashMap::new();
    let mut tensors = HashMap::new();
    for (name, value) in &entries {
        let (Value::Text(name), Value::Tensor(view)) = (name, value) else { continue };
        if !storages.contains_key(&view.key) {
            let mut bytes = Vec::new();
            let mut member = zip.by_name(&format!("{folder}data/{}", view.key)).map_err(|e| wrong(&e.to_string()))?;
            member.read_to_end(&mut bytes).map_err(Error::io(path))?;
            storages.insert(view.key.clone(), bytes);
        }
        let values = view.values(&storages[&view.key]).ok_or_else(|| view.kind.to_string());
        tensors.insert(name.to_string(), Tensor { shape: view.shape.clone(), values });
    }
    Ok(tensors)
}

pub struct Tensor {
    pub shape: Vec<usize>,
    /// In row-major order, or the type of what they are instead.
    pub values: Result<Vec<f32>, String>,
}

/// A tensor as the pickle describes it: a part of a storage.
struct View {
    kind: Rc<str>,
    key: Rc<str>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl View {
    /// Returns the values in row-major order, however they lie; `None` for other than floats, and for tensors that leave
    /// their storage.
    fn values(&self, storage: &[u8]) -> Option<Vec<f32>> {
        if self.shape.len() != self.strides.len() {
            return None;
        }
        let len = self.shape.iter().try_fold(1usize, |len, n| len.checked_mul(*n))?;
        let mut expected = 1;
        let row_major = self.shape.iter().zip(&self.strides).rev().all(|(&n, &stride)| {
            let fits = n <= 1 || stride == expected;
            expected *= n;
            fits
        });
        if row_major {
            return self.floats(storage, self.offset..self.offset.checked_add(len)?);
        }
        let all = self.floats(storage, 0..storage.len() / self.size()?)?;
        // A stride of 0 makes a tensor of any size of a few bytes.
        if len > all.len() {
            return None;
        }
        let mut index = vec![0; self.shape.len()];
        let mut values = Vec::with_capacity(len);
        for _ in 0..len {
            let step = |at: usize, (i, stride): (&usize, &usize)| at.checked_add(usize::checked_mul(*i, *stride)?);
            values.push(*all.get(index.iter().zip(&self.strides).try_fold(self.offset, step)?)?);
            for (i, n) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *n {
                    break;
                }
                *i = 0;
            }
        }
        Some(values)
    }

    /// Returns the bytes of a value.
    fn size(&self) -> Option<usize> {
        match &*self.kind {
            "FloatStorage" => Some(4),
            "HalfStorage" | "BFloat16Storage" => Some(2),
            _ => None,
        }
    }

    /// Returns these values of a storage; `None` where it does not hold them.
    fn floats(&self, storage: &[u8], range: Range<usize>) -> Option<Vec<f32>> {
        let size = self.size()?;
        let bytes = storage.get(range.start.checked_mul(size)?..range.end.checked_mul(size)?)?;
        let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        Some(match &*self.kind {
            "FloatStorage" => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            "HalfStorage" => pairs().map(|b| f16::from_bits(b).to_f32()).collect(),
            _ => pairs().map(|b| bf16::from_bits(b).to_f32()).collect(),
        })
    }
}

/// PyTorch nests tuples three deep, and puts a thousand entries of a dictionary on the stack.
const MOST_NESTED: usize = 16;
const LARGEST_STACK: usize = 8192;
/// Entries of a dictionary, and of all within it: one that holds itself, or is built from itself, would have no end.
const MOST_ENTRIES: usize = 100_000;

#[derive(Clone)]
enum Value {
    Text(Rc<str>),
    Int(i64),
    /// With how deep it is: a file may nest them until dropping them runs out of stack.
    Tuple(Rc<[Value]>, usize),
    Dict(Rc<std::cell::RefCell<Vec<(Value, Value)>>>),
    /// A class or function, `module.name`.
    Global(Rc<str>),
    Tensor(Rc<View>),
    /// None, numbers, lists, and whatever is not needed.
    Other,
}

impl Value {
    fn get(&self, key: &str) -> Option<Value> {
        let Value::Dict(entries) = self else { return None };
        entries.borrow().iter().find(|(name, _)| matches!(name, Value::Text(name) if &**name == key)).map(|(_, value)| value.clone())
    }

    fn is_dict(&self) -> bool {
        matches!(self, Value::Dict(_))
    }

    /// Returns the tensors of a tree of dictionaries, their keys joined by dots.
    fn flat(&self) -> Vec<(Value, Value)> {
        let (mut flat, mut stack) = (Vec::new(), vec![(String::new(), self.clone(), 0)]);
        let mut seen = 0;
        while let Some((name, value, depth)) = stack.pop().filter(|_| seen < MOST_ENTRIES) {
            seen += 1;
            match value {
                Value::Tensor(_) => flat.push((Value::Text(name.into()), value)),
                Value::Dict(entries) if depth < MOST_NESTED && stack.len() < MOST_ENTRIES => {
                    let dot = if name.is_empty() { "" } else { "." };
                    stack.extend(
                        entries
                            .borrow()
                            .iter()
                            .filter_map(|(key, value)| Some((format!("{name}{dot}{}", key.text()?), value.clone(), depth + 1))),
                    );
                }
                _ => {}
            }
        }
        flat
    }

    fn text(&self) -> Option<Rc<str>> {
        if let Value::Text(text) = self { Some(text.clone()) } else { None }
    }

    fn tuple(values: Vec<Value>) -> Result<Value, String> {
        let depth = values.iter().map(|value| if let Value::Tuple(_, depth) = value { depth + 1 } else { 1 }).max().unwrap_or(1);
        if depth > MOST_NESTED {
            return Err(format!("its pickle nests tuples more than {MOST_NESTED} deep"));
        }
        Ok(Value::Tuple(values.into(), depth))
    }

    fn sizes(&self) -> Option<Vec<usize>> {
        let Value::Tuple(values, _) = self else { return None };
        values.iter().map(|value| if let Value::Int(n) = value { usize::try_from(*n).ok() } else { None }).collect()
    }
}

/// Pickle's stack machine, the part that `torch.save` uses. Source: Python's `pickletools`.
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl Machine<'_> {
    fn run(mut self) -> Result<Value, String> {
        loop {
            let op = self.bytes(1)?[0];
            if self.stack.len() > LARGEST_STACK {
                return Err(format!("its pickle's stack is larger than {LARGEST_STACK}"));
            }
            match op {
                0x80 => drop(self.bytes(1)?),
                0x95 => drop(self.bytes(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'.' => return self.pop(),
                b'0' => drop(self.pop()?),
                b'N' | b'\x88' | b'\x89' | b']' => self.stack.push(Value::Other),
                b'}' => self.stack.push(Value::Dict(Rc::default())),
                b')' => self.stack.push(Value::tuple(Vec::new())?),
                b'J' => {
                    let n = self.number(4)? as u32 as i32;
                    self.stack.push(Value::Int(n.into()));
                }
                b'K' => self.int(1)?,
                b'M' => self.int(2)?,
                0x8a => {
                    let n = self.number(1)? as usize;
                    let bytes = self.bytes(n)?;
                    let mut value = if bytes.last().is_some_and(|b| b & 0x80 != 0) { [0xff; 8] } else { [0; 8] };
                    value.get_mut(..n).ok_or("a number of more than 64 bits")?.copy_from_slice(bytes);
                    self.stack.push(Value::Int(i64::from_le_bytes(value)));
                }
                b'G' => {
                    self.bytes(8)?;
                    self.stack.push(Value::Other);
                }
                b'X' => self.push_text(4)?,
                0x8c => self.push_text(1)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Global(format!("{module}.{name}").into()));
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Some(name), Some(module)) = (name.text(), module.text()) else { return Err("a global without a name".into()) };
                    self.stack.push(Value::Global(format!("{module}.{name}").into()));
                }
                b'q' => self.remember(1)?,
                b'r' => self.remember(4)?,
                0x94 => {
                    let top = self.stack.last().ok_or("nothing to remember")?.clone();
                    self.memo.insert(self.memo.len() as u32, top);
                }
                b'h' => self.recall(1)?,
                b'j' => self.recall(4)?,
                b't' => {
                    let values = self.since_mark()?;
                    self.stack.push(Value::tuple(values)?);
                }
                0x85..=0x87 => {
                    let at = self.stack.len().checked_sub(usize::from(op - 0x84)).ok_or("an empty stack")?;
                    let values = self.stack.split_off(at);
                    self.stack.push(Value::tuple(values)?);
                }
                b'a' => drop(self.pop()?),
                b'e' => drop(self.since_mark()?),
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let entries = self.since_mark()?;
                    self.set(entries)?;
                }
                b'R' => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    self.stack.push(call(&callable, &arguments));
                }
                0x81 => {
                    let (_arguments, _class) = (self.pop()?, self.pop()?);
                    self.stack.push(Value::Dict(Rc::default()));
                }
                // An object is the dictionary of its attributes, whatever its class.
                b'b' => {
                    if let Value::Dict(state) = self.pop()? {
                        let entries = state.borrow().iter().flat_map(|(key, value)| [key.clone(), value.clone()]).collect();
                        self.set(entries)?;
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.stack.push(id);
                }
                other => return Err(format!("its pickle has the operation {other:#04x}, which state dictionaries do not need")),
            }
        }
    }

    fn bytes(&mut self, n: usize) -> Result<&[u8], String> {
        let (bytes, rest) = self.rest.split_at_checked(n).ok_or("its pickle breaks off")?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Little-endian, of up to 8 bytes.
    fn number(&mut self, n: usize) -> Result<u64, String> {
        Ok(self.bytes(n)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn int(&mut self, n: usize) -> Result<(), String> {
        let number = self.number(n)? as i64;
        self.stack.push(Value::Int(number));
        Ok(())
    }

    fn push_text(&mut self, length_bytes: usize) -> Result<(), String> {
        let n = self.number(length_bytes)? as usize;
        let text = String::from_utf8_lossy(self.bytes(n)?).into_owned();
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.rest.iter().position(|&b| b == b'\n').ok_or("its pickle breaks off")?;
        let line = String::from_utf8_lossy(&self.rest[..end]).into_owned();
        self.rest = &self.rest[end + 1..];
        Ok(line)
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack.pop().ok_or_else(|| "an empty stack".to_string())
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len()).ok_or("no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, n: usize) -> Result<(), String> {
        let at = self.number(n)? as u32;
        let top = self.stack.last().ok_or("nothing to remember")?.clone();
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, n: usize) -> Result<(), String> {
        let at = self.number(n)? as u32;
        let value = self.memo.get(&at).ok_or("nothing was remembered there")?.clone();
        self.stack.push(value);
        Ok(())
    }

    /// Keys and values in turn, into the dictionary on top.
    fn set(&mut self, entries: Vec<Value>) -> Result<(), String> {
        if let Some(Value::Dict(dict)) = self.stack.last() {
            if dict.borrow().len() + entries.len() / 2 > MOST_ENTRIES {
                return Err(format!("its pickle has a dictionary of more than {MOST_ENTRIES} entries"));
            }
            let mut entries = entries.into_iter();
            while let (Some(key), Some(value)) = (entries.next(), entries.next()) {
                dict.borrow_mut().push((key, value));
            }
        }
        Ok(())
    }
}

fn call(callable: &Value, arguments: &Value) -> Value {
    let (Value::Global(name), Value::Tuple(arguments, _)) = (callable, arguments) else { return Value::Other };
    match (&**name, &**arguments) {
        ("collections.OrderedDict", _) => Value::Dict(Rc::default()),
        // (storage, offset, size, stride, ...), the storage being ("storage", class, key, place, length).
        ("torch._utils._rebuild_tensor_v2", [Value::Tuple(storage, _), Value::Int(offset), shape, strides, ..]) => {
            let view = || {
                let [_, Value::Global(class), Value::Text(key), ..] = &**storage else { return None };
                let kind = class.rsplit('.').next()?.into();
                let (offset, shape, strides) = (usize::try_from(*offset).ok()?, shape.sizes()?, strides.sizes()?);
                Some(View { kind, key: key.clone(), offset, shape, strides })
            };
            view().map_or(Value::Other, |view| Value::Tensor(Rc::new(view)))
        }
        // (tensor, requires_grad, hooks).
        ("torch._utils._rebuild_parameter", [tensor, ..]) => tensor.clone(),
        _ => Value::Other,
    }
}
