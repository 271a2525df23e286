use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::*;

/// A fixed, rough, uneven signal.
fn signal(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    (0..n)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let unit = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            unit * (1.0 + (i / 32 % 7) as f32) * 0.1
        })
        .collect()
}

fn quantize(dtype: DType, x: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; dtype.row_bytes(x.len()).unwrap()];
    quantize_row(dtype, x, &mut bytes);
    bytes
}

fn dequantize(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut y = vec![f32::NAN; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    dequantize_row(dtype, bytes, &mut y);
    y
}

#[test]
fn sizes() {
    for dtype in DType::ALL {
        assert_eq!(dtype.row_bytes(dtype.block_len() * 3), Some(dtype.block_bytes() * 3), "{dtype}");
        assert_eq!(dtype.row_bytes(0), Some(0));
        assert_eq!(dtype.row_bytes(dtype.block_len() + 1).is_some(), dtype.block_len() == 1);
    }
    assert_eq!(DType::F32.row_bytes(usize::MAX / 2), None);
}

#[test]
fn known_blocks() {
    // 0, 1, .., 31 and their negatives: every number below is worked out by hand.
    let ramp: Vec<f32> = (0..32).map(|i| i as f32).collect();
    let q8 = quantize(DType::Q8_0, &ramp);
    assert_eq!(f16::from_le_bytes([q8[0], q8[1]]), f16::from_f32(31.0 / 127.0));
    assert_eq!(&q8[2..6], &[0, 4, 8, 12]);
    assert_eq!(q8[33], 127);

    let q4 = quantize(DType::Q4_0, &ramp);
    assert_eq!(f16::from_le_bytes([q4[0], q4[1]]), f16::from_f32(-31.0 / 8.0));
    // 0 is 8 (low); 16 / -3.875 + 8.5 = 4.37 is 4 (high); 31 is 0.
    assert_eq!(q4[2], 8 | 4 << 4);
    assert_eq!(q4[17] >> 4, 0);

    let shifted: Vec<f32> = ramp.iter().map(|v| v - 1.0).collect();
    let q41 = quantize(DType::Q4_1, &shifted);
    assert_eq!(f16::from_le_bytes([q41[0], q41[1]]), f16::from_f32(31.0 / 15.0));
    assert_eq!(f16::from_le_bytes([q41[2], q41[3]]), f16::from_f32(-1.0));
    assert_eq!((q41[4], q41[19] >> 4), (8 << 4, 15));

    let negative: Vec<f32> = ramp.iter().map(|v| -v).collect();
    assert_eq!(quantize(DType::Q8_0, &negative)[33] as i8, -127);
}

#[test]
fn zeros_and_non_finite_do_not_trap() {
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_1] {
        assert_eq!(dequantize(dtype, &quantize(dtype, &[0.0; 32])), [0.0; 32], "{dtype}");
        for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE] {
            quantize(dtype, &[v; 32]);
        }
    }
    for dtype in DType::ALL {
        dequantize(dtype, &vec![0xff; dtype.block_bytes() * 2]);
    }
}

#[test]
fn round_trip_error_is_half_a_step() {
    let x = signal(256);
    for (dtype, steps) in [(DType::Q8_0, 254.0), (DType::Q4_0, 16.0), (DType::Q4_1, 30.0)] {
        let y = dequantize(dtype, &quantize(dtype, &x));
        for (x, y) in x.chunks(32).zip(y.chunks(32)) {
            let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (x, y) in x.iter().zip(y) {
                assert!((x - y).abs() <= 2.01 * amax / steps, "{dtype}: {x} {y} {amax}");
            }
        }
    }
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let y = dequantize(dtype, &quantize(dtype, &x));
        assert_eq!(y, dequantize(dtype, &quantize(dtype, &y)), "{dtype}");
    }
    assert_eq!(dequantize(DType::F32, &quantize(DType::F32, &x)), x);
}

/// candle implements the same formats independently.
#[test]
fn agrees_with_candle() {
    let x = signal(1024);
    let tensor = Tensor::from_vec(x.clone(), (1, 1024), &Device::Cpu).unwrap();
    for (dtype, theirs) in [
        (DType::F16, GgmlDType::F16),
        (DType::BF16, GgmlDType::BF16),
        (DType::Q8_0, GgmlDType::Q8_0),
        (DType::Q4_0, GgmlDType::Q4_0),
        (DType::Q4_1, GgmlDType::Q4_1),
        (DType::Q5_0, GgmlDType::Q5_0),
        (DType::Q5_1, GgmlDType::Q5_1),
        (DType::Q4_K, GgmlDType::Q4K),
        (DType::Q5_K, GgmlDType::Q5K),
        (DType::Q6_K, GgmlDType::Q6K),
    ] {
        let q = QTensor::quantize(&tensor, theirs).unwrap();
        let bytes = q.data().unwrap();
        let expected = q.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(dequantize(dtype, &bytes), expected, "{dtype}");
        if dtype.is_writable() {
            assert_eq!(quantize(dtype, &x), bytes.as_ref(), "{dtype}");
        }
    }
}
