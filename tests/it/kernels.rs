//! The CUDA kernels of `kernels/` against plain arithmetic. A runner executes one kernel on given buffers: compiled by a
//! C++ compiler, it runs a block's threads on the host, so that this needs no GPU; `LIMA_KERNEL_RUNNER` names another,
//! compiled for a GPU. Without both the tests say so and pass.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use half::bf16;
use lima::ops::quant::{DType, dequantize_row, quantize_row};

/// The runner, compiled once.
fn runner() -> Option<&'static PathBuf> {
    static RUNNER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        if let Some(path) = std::env::var_os("LIMA_KERNEL_RUNNER") {
            return Some(path.into());
        }
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernels-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (runner, source) = (folder.join("runner"), concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/runner.cu"));
        let built = Command::new("g++")
            .args(["-std=c++17", "-O1", "-ffp-contract=off", "-DLIMA_HOST", "-x", "c++", "-o"])
            .args([runner.as_os_str(), source.as_ref()])
            .status();
        match built {
            Ok(status) => assert!(status.success(), "the kernels do not compile for the host"),
            Err(error) => {
                eprintln!("skipped: no g++ for the kernels ({error})");
                return None;
            }
        }
        Some(runner)
    };
    RUNNER.get_or_init(build).as_ref()
}

/// A launch: the argument struct, and the buffers its pointers lead to.
#[derive(Default)]
struct Launch {
    args: Vec<u8>,
    buffers: Vec<(u32, Vec<u8>)>,
}

impl Launch {
    /// A pointer to these bytes.
    fn pointer(mut self, bytes: Vec<u8>) -> Self {
        assert_eq!(self.args.len() % 8, 0, "pointers are aligned");
        self.buffers.push((self.args.len() as u32, bytes));
        self.null()
    }

    fn null(mut self) -> Self {
        self.args.extend([0; 8]);
        self
    }

    fn number(mut self, x: u32) -> Self {
        self.args.extend(x.to_le_bytes());
        self
    }

    /// Runs it; the buffers afterwards. The struct ends as its 8-byte alignment wants.
    fn run(mut self, kernel: &str, grid: [u32; 3], threads: u32) -> Option<Vec<Vec<u8>>> {
        let runner = runner()?;
        self.args.resize(self.args.len().next_multiple_of(8), 0);
        let mut message = Vec::new();
        let number = |m: &mut Vec<u8>, x: usize| m.extend((x as u32).to_le_bytes());
        number(&mut message, kernel.len());
        message.extend(kernel.as_bytes());
        for x in grid.into_iter().chain([threads]) {
            number(&mut message, x as usize);
        }
        number(&mut message, self.args.len());
        message.extend(&self.args);
        number(&mut message, self.buffers.len());
        for (offset, bytes) in &self.buffers {
            message.extend(offset.to_le_bytes());
            message.extend((bytes.len() as u64).to_le_bytes());
            message.extend(bytes);
        }
        let mut child = Command::new(runner).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&message).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{kernel} failed");
        let mut rest = output.stdout.as_slice();
        let buffers = self.buffers.iter().map(|(_, bytes)| {
            let (now, after) = rest.split_at(bytes.len());
            rest = after;
            now.to_vec()
        });
        Some(buffers.collect())
    }
}

fn bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn words(x: &[u32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

/// Numbers in -1..1, the same in every run.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "number {i}: {g}, not {w}");
    }
}

/// A quantised matrix as the kernels keep it (quants, scales, supers), and its numbers.
struct Matrix {
    parts: [Vec<u8>; 3],
    numbers: Vec<f32>,
}

/// The 6-bit scale and minimum of sub-block `j`, written into the 12 bytes of a Q4_K block.
fn put_scale(bytes: &mut [u8], j: usize, scale: u8, min: u8) {
    if j < 4 {
        bytes[j] |= scale;
        bytes[j + 4] |= min;
    } else {
        bytes[j + 4] |= scale & 15 | min << 4;
        bytes[j - 4] |= scale >> 4 << 6;
        bytes[j] |= min >> 4 << 6;
    }
}

fn matrix(dtype: DType, rows: usize, cols: usize, seed: u32) -> Matrix {
    let source = numbers(rows * cols, seed);
    let mut stored = vec![0; rows * dtype.row_bytes(cols).unwrap()];
    let [mut quants, mut scales, mut supers] = [const { Vec::new() }; 3];
    if dtype == DType::Q4_K {
        for (i, block) in stored.chunks_exact_mut(144).enumerate() {
            let x = |k: usize| (source[i * 256 + k] * 127.0 + 128.0) as u8;
            let header: [u8; 4] = [0x12, 0x20 + (i % 7) as u8, 0x31, 0x21];
            block[..4].copy_from_slice(&header);
            supers.extend(header);
            for j in 0..8 {
                let (scale, min) = (x(j) % 64, x(j + 8) % 64);
                put_scale(&mut block[4..16], j, scale, min);
                scales.extend([scale, min]);
                let q = |l: usize| x(j * 32 + l) >> 4;
                for l in 0..32 {
                    block[16 + j / 2 * 32 + l] |= q(l) << (j % 2 * 4);
                }
                quants.extend((0..16).map(|l| q(l) | q(l + 16) << 4));
            }
        }
    } else {
        quantize_row(dtype, &source, &mut stored);
        let header = if dtype == DType::Q4_1 { 4 } else { 2 };
        for block in stored.chunks_exact(dtype.block_bytes()) {
            scales.extend(&block[..header]);
            quants.extend(&block[header..]);
        }
    }
    let mut numbers = vec![0.0; rows * cols];
    dequantize_row(dtype, &stored, &mut numbers);
    Matrix { parts: [quants, scales, supers], numbers }
}

impl Matrix {
    fn put(&self, mut launch: Launch, rows: usize, cols: usize) -> Launch {
        for part in &self.parts {
            launch = if part.is_empty() { launch.null() } else { launch.pointer(part.clone()) };
        }
        launch.number(rows as u32).number(cols as u32)
    }
}

const QUANTISED: [(DType, &str); 4] =
    [(DType::Q8_0, "q8_0"), (DType::Q4_0, "q4_0"), (DType::Q4_1, "q4_1"), (DType::Q4_K, "q4_k")];

#[test]
fn a_token_gets_its_row_of_the_embedding() {
    let (rows, cols, tokens) = (5, 512, [4, 0, 3, 3]);
    for (dtype, name) in QUANTISED {
        let table = matrix(dtype, rows, cols, 7);
        let launch = table.put(Launch::default(), rows, cols).pointer(words(&tokens));
        let launch = launch.pointer(vec![0; tokens.len() * cols * 4]);
        let Some(out) = launch.run(&format!("embed_{name}"), [4, 1, 1], 256) else { return };
        let want: Vec<f32> = tokens.iter().flat_map(|&t| table.numbers[t as usize * cols..][..cols].to_vec()).collect();
        assert_close(&floats(out.last().unwrap()), &want, 1e-6);
    }
}

#[test]
fn dequantised_rows_are_the_references_in_bf16() {
    let (rows, cols, first) = (7, 256, 2);
    for (dtype, name) in QUANTISED {
        let table = matrix(dtype, rows, cols, 8);
        let launch = table.put(Launch::default(), rows, cols).pointer(vec![0; (rows - first) * cols * 2]);
        let launch = launch.number(first as u32).number((rows - first) as u32);
        let Some(out) = launch.run(&format!("dequantize_{name}"), [1, 1, 1], 256) else { return };
        assert_close(&halves(out.last().unwrap()), &table.numbers[first * cols..], 0.005);
    }
}

/// The norm of rows, in f64.
fn normed(x: &[f32], weight: &[f32], eps: f64) -> Vec<f32> {
    let rows = x.chunks_exact(weight.len()).flat_map(|x| {
        let squares: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let scale = 1.0 / (squares / weight.len() as f64 + eps).sqrt();
        x.iter().zip(weight).map(move |(x, w)| (f64::from(*x) * scale * f64::from(*w)) as f32).collect::<Vec<_>>()
    });
    rows.collect()
}

#[test]
fn rows_are_normed_in_each_form() {
    for width in [32, 96, 576, 1056] {
        let mut x = numbers(3 * width, width as u32);
        // A row of zeros, and a row of large numbers.
        x[width..2 * width].fill(0.0);
        x[2 * width..].iter_mut().for_each(|x| *x *= 1e6);
        let weight = numbers(width, 3);
        let want = normed(&x, &weight, 1e-5);
        let scales = 3 * width / 32;
        for (form, size, tolerance) in [("f32", 4, 1e-5), ("bf16", 2, 0.005), ("int8", 1, 0.01)] {
            let launch = Launch::default().pointer(bytes(&x)).pointer(bytes(&weight)).null();
            let launch = launch.pointer(vec![0; 3 * width * size]).pointer(vec![0; scales * 8]);
            let launch = launch.number(width as u32).number(width as u32).number(1e-5f32.to_bits());
            let Some(out) = launch.run(&format!("prepare_norm_{form}"), [3, 1, 1], 256) else { return };
            let got = match form {
                "f32" => floats(&out[2]),
                "bf16" => halves(&out[2]),
                _ => integers(&out[2], &floats(&out[3])),
            };
            assert_close(&got, &want, tolerance);
        }
    }
}

/// What int8 rows and their scales stand for; checks the sums.
fn integers(quants: &[u8], scales: &[f32]) -> Vec<f32> {
    let blocks = quants.chunks_exact(32).zip(scales.chunks_exact(2)).flat_map(|(q, s)| {
        assert_eq!(s[1], q.iter().map(|&q| f32::from(q as i8)).sum::<f32>());
        q.iter().map(|&q| f32::from(q as i8) * s[0]).collect::<Vec<_>>()
    });
    blocks.collect()
}

#[test]
fn numbers_that_are_not_finite_do_not_become_numbers() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = numbers(64, 5);
        x[40] = bad;
        let launch = Launch::default().pointer(bytes(&x)).null().null().pointer(vec![0; 64]).pointer(vec![0; 16]);
        let launch = launch.number(64).number(64).number(0);
        let Some(out) = launch.run("prepare_plain_int8", [1, 1, 1], 256) else { return };
        let scales = floats(&out[2]);
        assert!(scales[0].is_finite() && scales[2].is_nan(), "{bad}: {scales:?}");
    }
}

#[test]
fn gates_are_multiplied() {
    let (rows, width) = (2, 160);
    let mut x = numbers(rows * 2 * width, 11);
    x.iter_mut().for_each(|x| *x *= 8.0);
    (x[0], x[1], x[2]) = (-200.0, 200.0, 0.0);
    let want: Vec<f32> = x
        .chunks_exact(2 * width)
        .flat_map(|x| (0..width).map(|i| x[i] / (1.0 + (-x[i]).exp()) * x[width + i]).collect::<Vec<_>>())
        .collect();
    let launch = Launch::default().pointer(bytes(&x)).pointer(vec![0; rows * width * 4]).null();
    let Some(out) = launch.number(width as u32).run("silu_mul_f32", [2, 1, 1], 256) else { return };
    assert_close(&floats(&out[1]), &want, 1e-5);
}

#[test]
fn products_are_the_same_in_every_batch() {
    let (outputs, cols) = (10, 768);
    let x = numbers(9 * cols, 21);
    let residual = numbers(9 * outputs, 22);
    let launch = Launch::default().pointer(bytes(&x)).null().null().pointer(vec![0; 9 * cols]);
    let launch = launch.pointer(vec![0; 9 * cols / 32 * 8]).number(cols as u32).number(cols as u32).number(0);
    let Some(prepared) = launch.run("prepare_plain_int8", [9, 1, 1], 256) else { return };
    let rounded = integers(&prepared[1], &floats(&prepared[2]));
    for (dtype, name) in QUANTISED {
        let w = matrix(dtype, outputs, cols, 23);
        let want: Vec<f32> = (0..9 * outputs)
            .map(|i| {
                let (x, w) = (&rounded[i / outputs * cols..][..cols], &w.numbers[i % outputs * cols..][..cols]);
                residual[i] + x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32
            })
            .collect();
        let run = |rows: usize, tile: usize| {
            let launch = w.put(Launch::default(), outputs, cols);
            let launch = launch.pointer(prepared[1][..rows * cols].to_vec());
            let launch = launch.pointer(prepared[2][..rows * cols / 32 * 8].to_vec());
            let launch = launch.pointer(bytes(&residual[..rows * outputs])).pointer(vec![0; rows * outputs * 4]);
            let grid = [outputs.div_ceil(4) as u32, rows.div_ceil(tile) as u32, 1];
            let out = launch.number(rows as u32).run(&format!("product_{name}_{tile}"), grid, 128).unwrap();
            floats(out.last().unwrap())
        };
        let all = run(9, 8);
        assert_close(&all, &want, 2e-4);
        assert_eq!(run(9, 4), all);
        assert_eq!(run(1, 1), all[..outputs]);
        assert_eq!(run(3, 4), all[..3 * outputs]);
    }
}

/// A cache of `n` numbers filled by the rotation kernel token by token, then read by attention, against f64.
fn attends(kind: &str, heads: usize, kv_heads: usize, dim: usize, len: usize, tolerance: f32) {
    let width = (heads + 2 * kv_heads) * dim;
    let mut qkv = numbers(len * width, (dim + len) as u32);
    qkv.iter_mut().for_each(|x| *x *= 2.0);
    let angles: Vec<f32> = (0..len * dim / 2).map(|i| (i / (dim / 2)) as f32 / (1 + i % (dim / 2)) as f32).collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    // Blocks in reverse order, with one that is nobody's.
    let count = len.div_ceil(32);
    let table: Vec<u32> = (0..count as u32).rev().collect();
    let positions: Vec<u32> = (0..len as u32).collect();
    let blocks: Vec<u32> = positions.iter().map(|p| table[*p as usize / 32]).collect();
    let size = match kind {
        "f32" => 4,
        "bf16" => 2,
        _ => 1,
    };
    let slots = (count + 1) * kv_heads * 32;
    let empty = || vec![0; slots * dim * size];
    let cache = |launch: Launch, parts: [Vec<u8>; 4]| {
        let launch = parts.into_iter().fold(launch, Launch::pointer);
        launch.number(kv_heads as u32).number(dim as u32)
    };
    let launch = Launch::default().pointer(bytes(&qkv)).pointer(bytes(&cos)).pointer(bytes(&sin));
    let launch = launch.pointer(words(&positions)).pointer(words(&blocks));
    let launch = cache(launch, [empty(), empty(), vec![0; slots * 4], vec![0; slots * 4]]);
    let launch = launch.number(heads as u32).number((1.0 / (dim as f32).sqrt()).to_bits());
    let grid = [len as u32, (heads + 2 * kv_heads).div_ceil(4) as u32, 1];
    let Some(rotated) = launch.run(&format!("rope_{kind}"), grid, 128) else { return };

    // The last row, alone and with a short row before it.
    let rows = [4.min(len - 1), len - 1];
    let parts = (len - 1) / 256 + 1;
    let attend = |rows: &[usize]| {
        let queries: Vec<u8> =
            rows.iter().flat_map(|r| rotated[0][r * width * 4..(r + 1) * width * 4].to_vec()).collect();
        let at: Vec<u32> = rows.iter().map(|r| *r as u32).collect();
        let launch = |out: Vec<u8>, partials: Vec<u8>| {
            let launch = Launch::default().pointer(queries.clone()).pointer(out).pointer(partials);
            let launch = launch.pointer(words(&at)).pointer(words(&vec![0; rows.len()])).pointer(words(&table));
            let launch = cache(launch, std::array::from_fn(|i| rotated[5 + i].clone()));
            launch.number(width as u32).number(heads as u32).number(parts as u32)
        };
        let empty = (vec![0; rows.len() * heads * dim * 4], vec![0; rows.len() * heads * parts * (dim + 2) * 4]);
        let tiles = (heads / kv_heads).div_ceil(8) * kv_heads;
        let grid = [rows.len() as u32, tiles as u32, parts as u32];
        let out = launch(empty.0, empty.1).run(&format!("attention_{kind}"), grid, 128).unwrap();
        if parts == 1 {
            return floats(&out[1]);
        }
        let grid = [rows.len() as u32, heads as u32, 1];
        floats(&launch(out[1].clone(), out[2].clone()).run("attention_join", grid, 128).unwrap()[1])
    };
    let got = attend(&rows);
    assert_eq!(attend(&rows[1..]), got[heads * dim..], "a row depends on its neighbours");

    let rotate = |token: usize, head: usize, i: usize| {
        let x = |i: usize| f64::from(qkv[token * width + head * dim + i]);
        let (half, angle) = (dim / 2, f64::from(angles[token * dim / 2 + i % (dim / 2)]));
        if i < half {
            x(i) * angle.cos() - x(i + half) * angle.sin()
        } else {
            x(i) * angle.cos() + x(i - half) * angle.sin()
        }
    };
    for (r, &row) in rows.iter().enumerate() {
        for head in 0..heads {
            let kv = head / (heads / kv_heads);
            let query: Vec<f64> = (0..dim).map(|i| rotate(row, head, i) / (dim as f64).sqrt()).collect();
            let scores: Vec<f64> =
                (0..=row).map(|t| (0..dim).map(|i| query[i] * rotate(t, heads + kv, i)).sum()).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let value = |t: usize, d: usize| f64::from(qkv[t * width + (heads + kv_heads + kv) * dim + d]);
            let want: Vec<f32> = (0..dim)
                .map(|d| (weights.iter().enumerate().map(|(t, w)| w * value(t, d)).sum::<f64>() / sum) as f32)
                .collect();
            assert_close(&got[(r * heads + head) * dim..][..dim], &want, tolerance);
        }
    }
}

#[test]
fn attention_reads_what_the_rotation_wrote() {
    for (kind, tolerance) in [("f32", 1e-4), ("bf16", 0.03), ("int8", 0.05)] {
        attends(kind, 3, 1, 64, 33, tolerance);
        attends(kind, 2, 2, 80, 5, tolerance);
        // Several partitions.
        attends(kind, 2, 1, 64, 290, tolerance);
    }
    // A group of more queries than a block takes, the largest head, and a partition that is just full.
    attends("f32", 9, 1, 64, 6, 1e-4);
    attends("f32", 2, 1, 256, 9, 1e-4);
    attends("f32", 1, 1, 64, 256, 1e-4);
}
