//! Packing: what it keeps, and what it refuses.

use super::super::pack::Packed;
use super::super::pool::Pool;
use super::support::{FORMATS, Random, bits, matrix, pack, random_blocks, whole};
use crate::model::weights::TensorView;
use crate::ops::OpsError;
use crate::ops::quant::{DType, quantize_row};

#[test]
fn packing_keeps_every_number() {
    let mut random = Random(7);
    for dtype in FORMATS {
        let cols = whole(dtype, 96);
        let (w, numbers) = matrix(&mut random, dtype, 35, cols, 1.0);
        for (i, row) in numbers.chunks_exact(cols).enumerate() {
            let mut out = vec![0f32; cols];
            w.unpack_row(i, &mut out);
            assert_eq!(bits(&out), bits(row), "{dtype:?} row {i}");
        }
    }
}

#[test]
fn a_shape_that_no_kernel_takes_is_refused() {
    let row = vec![0u8; 40 * 4];
    let view = TensorView::new(DType::F32, 1, 40, &row, None).unwrap();
    assert!(pack(&view, DType::Q8_0).is_err());
    assert!(pack(&view, DType::F32).is_ok());
    let row = vec![0u8; 256 * 4];
    let view = TensorView::new(DType::F32, 1, 256, &row, None).unwrap();
    assert_eq!(pack(&view, DType::Q4_K).map(|_| ()).unwrap_err().to_string(), "F32 is not converted to Q4_K");
}

/// The first row of the first matrix with a number that is not finite is named, however many workers there are.
#[test]
fn numbers_that_are_not_finite_are_refused() {
    let mut random = Random(8);
    for dtype in FORMATS {
        let (rows, cols) = (50, whole(dtype, 64));
        let row_bytes = dtype.row_bytes(cols).unwrap();
        let mut good = vec![0u8; rows * row_bytes];
        for row in good.chunks_exact_mut(row_bytes) {
            match dtype.is_writable() {
                true => quantize_row(dtype, &random.vec(cols, 1.0), row),
                false => random_blocks(&mut random, dtype, 1.0, row),
            }
        }
        // Where a number or scale begins in the last block of a row, and what it is replaced by.
        let last = row_bytes - dtype.block_bytes();
        let (places, bad): (&[usize], &[&[u8]]) = match dtype {
            DType::F32 => (&[0], &[&[0, 0, 0x80, 0x7f], &[0, 0, 0x80, 0xff], &[1, 0, 0x80, 0x7f], &[0, 0, 0xc0, 0xff]]),
            DType::BF16 => (&[0], &[&[0x80, 0x7f], &[0x80, 0xff], &[0xc0, 0x7f]]),
            DType::F16 | DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => (&[0], &[&[0, 0x7c], &[0, 0xfc], &[1, 0x7e]]),
            DType::Q6_K => (&[208], &[&[0, 0x7c], &[0, 0xfe]]),
            _ => (&[0, 2], &[&[0, 0x7c], &[0, 0xfc], &[0, 0x7e]]),
        };
        for place in places {
            for bad in bad {
                let mut bytes = good.clone();
                for row in [49, 33, 20] {
                    bytes[row * row_bytes + last + place..][..bad.len()].copy_from_slice(bad);
                }
                let parts = [&good, &bytes].map(|b| TensorView::new(dtype, rows, cols, b, None).unwrap());
                for workers in [1, 3] {
                    let error = Packed::new(&mut Pool::new(workers), &parts, dtype).map(|_| ()).unwrap_err();
                    assert!(matches!(error, OpsError::NotFinite { part: 1, row: 20 }), "{dtype:?} {error:?}");
                    let to = Packed::new(&mut Pool::new(workers), &parts, DType::Q8_0).map(|_| ()).unwrap_err();
                    assert!(matches!(to, OpsError::NotFinite { part: 1, row: 20 }), "{dtype:?} {to:?}");
                }
            }
        }
        assert!(pack(&TensorView::new(dtype, rows, cols, &good, None).unwrap(), dtype).is_ok(), "{dtype:?}");
    }
    // Finite, but not in the type it is converted to.
    let row: Vec<u8> = [1.0, f32::MAX].iter().cycle().take(32).flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(DType::F32, 1, 32, &row, None).unwrap();
    for dtype in [DType::BF16, DType::Q8_0, DType::Q4_0] {
        let error = pack(&view, dtype).map(|_| ()).unwrap_err();
        assert!(matches!(error, OpsError::Range { .. }), "{dtype:?} {error:?}");
    }
}
