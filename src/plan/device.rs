//! What a model may run on, and what that can do.

use std::hint::black_box;
use std::str::FromStr;
use std::time::Instant;

use crate::ops::cpu::level::Level;
use crate::ops::cpu::limits::{MULTIPLY_ADDS, multiply_adds, read};
use crate::runner::memory::available;

/// One device. Rates are what programs were seen to reach, or the data sheet's times what an H100 reaches of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    /// As it is asked for.
    pub name: &'static str,
    /// Bytes that a program may have.
    pub memory: f64,
    /// Bytes a second, read.
    pub bandwidth: f64,
    /// Dense BF16 operations a second (on processors: F32), a multiply-add counted as two.
    pub flops: f64,
    /// Bytes a second that a rank sends to others.
    pub link: f64,
    /// Whether it is this machine's processor.
    pub is_cpu: bool,
}

const MIB: f64 = (1u64 << 20) as f64;
const GIB: f64 = (1u64 << 30) as f64;

/// Of an H100's data sheet (3.35 TB/s, 989 TFLOP/s) a copy was seen to reach 3.0 TB/s, a matrix product of 8192³ 798 TFLOP/s.
const BANDWIDTH: f64 = 3.0 / 3.35;
const FLOPS: f64 = 798.0 / 989.0;

/// TB/s, TFLOP/s and GB/s of the data sheet; MiB as the driver reports them.
const fn gpu(name: &'static str, mib: f64, bandwidth: f64, flops: f64, link: f64) -> Device {
    Device {
        name,
        memory: mib * MIB,
        bandwidth: bandwidth * 1e12 * BANDWIDTH,
        flops: flops * 1e12 * FLOPS,
        link: link * 1e9,
        is_cpu: false,
    }
}

/// Known by name. Links: NVLink in one direction, or the PCIe bus.
pub const DEVICES: [Device; 10] = [
    gpu("h100-80", 81_559.0, 3.35, 989.0, 450.0),
    gpu("h200", 143_771.0, 4.8, 989.0, 450.0),
    gpu("b200", 183_359.0, 8.0, 2250.0, 900.0),
    gpu("a100-80", 81_920.0, 2.039, 312.0, 300.0),
    gpu("a100-40", 40_960.0, 1.555, 312.0, 300.0),
    gpu("l40s", 46_068.0, 0.864, 362.0, 32.0),
    gpu("l4", 23_034.0, 0.3, 121.0, 32.0),
    gpu("a10g", 23_028.0, 0.6, 70.0, 32.0),
    gpu("rtx4090", 24_564.0, 1.008, 165.0, 32.0),
    gpu("rtx3090", 24_576.0, 0.936, 71.0, 32.0),
];

impl Device {
    /// This machine's processor: its free memory, and what all its threads reach of reading and of F32 arithmetic, measured
    /// now in half a second. Another program that runs meanwhile lowers it.
    pub fn this() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let level = Level::best();
        let rate = |work: &(dyn Fn() + Sync)| {
            let mut best = 0f64;
            for _ in 0..5 {
                let started = Instant::now();
                std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
                best = best.max(threads as f64 / started.elapsed().as_secs_f64());
            }
            best
        };
        // More than caches hold.
        let numbers = vec![1f32; (256 << 20) / size_of::<f32>() / threads];
        const ROUNDS: usize = 1_000_000;
        let arrays: Vec<_> = (0..threads).map(|_| numbers.clone()).collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let reads = rate(&|| {
            let mine = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % threads;
            black_box(read(level, black_box(&arrays[mine])));
        });
        let flops = rate(&|| {
            black_box(multiply_adds(level, ROUNDS, black_box(&[0.5; 16])));
        });
        let bandwidth = reads * size_of_val(&numbers[..]) as f64;
        Self {
            name: "cpu",
            memory: available().map_or(f64::INFINITY, |bytes| bytes as f64),
            bandwidth,
            flops: flops * 2.0 * (ROUNDS * MULTIPLY_ADDS) as f64,
            link: bandwidth,
            is_cpu: true,
        }
    }
}

/// Devices that are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// How many.
    pub count: usize,
    /// Each.
    pub device: Device,
    /// Bytes of each that may be used, where that was said.
    pub limit: Option<u64>,
}

impl Machine {
    /// Bytes of a device that may be used.
    pub fn memory(&self) -> f64 {
        self.limit.map_or(self.device.memory, |limit| limit as f64)
    }
}

impl FromStr for Machine {
    type Err = String;

    /// `h100-80`, `8xh100-80`, `4xH200`, `8xH100-80GB`, or `cpu`.
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let counted = lower.split_once(['x', '×']).and_then(|(n, name)| Some((n.trim().parse::<usize>().ok()?, name)));
        let (count, name) = counted.unwrap_or((1, lower.as_str()));
        let name = name.trim().trim_end_matches("gb").replace("nvidia-", "");
        let unknown = || {
            let names: Vec<&str> = DEVICES.iter().map(|device| device.name).collect();
            format!("'{text}' is not known: {} and cpu are, and 8xNAME for several", names.join(", "))
        };
        if !(1..=1024).contains(&count) {
            return Err(format!("'{text}': from 1 to 1024 devices can be planned for"));
        }
        if name == "cpu" && count == 1 {
            return Ok(Self { count, device: Device::this(), limit: None });
        }
        // The number of bytes may be left out where there is one such device, or the first is meant.
        let same = |device: &&Device| device.name == name || device.name.split('-').next() == Some(name.as_str());
        let device = DEVICES.iter().find(same).ok_or_else(unknown)?;
        Ok(Self { count, device: *device, limit: None })
    }
}

/// Bytes in GB of 10⁹.
pub(super) fn gb(bytes: f64) -> f64 {
    bytes / 1e9
}

/// What is taken whatever the model is: see docs/plan.md.
pub(super) fn other(device: &Device, ranks: usize) -> f64 {
    if device.is_cpu {
        return 0.1 * GIB;
    }
    // Context and kernels, workspaces of matrix products, captured graphs; buffers of the collectives.
    let links = if ranks > 1 { 0.4 * GIB } else { 0.0 };
    (0.6 + 0.1 + 0.5) * GIB + links
}
