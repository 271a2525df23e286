use super::*;

fn config(head_dim: usize, rope_theta: f32, rope_scaling: RopeScaling) -> LlamaConfig {
    LlamaConfig {
        vocab_size: 32,
        hidden_size: 2 * head_dim,
        intermediate_size: 32,
        num_layers: 1,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim,
        rms_norm_eps: 1e-6,
        rope_theta,
        rope_scaling,
        tie_word_embeddings: true,
        max_position_embeddings: 131_072,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

fn llama3(factor: f32, low: f32, high: f32, original: usize) -> RopeScaling {
    RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    }
}

/// Bits of `inv_freq` of transformers 5.23's LlamaRotaryEmbedding. Torch's vectorised power is not
/// always the nearest number, so one unit in the last place is allowed.
#[test]
fn equal_to_transformers() {
    let cases: [(LlamaConfig, &[u32]); 5] = [
        (config(16, 1e4, RopeScaling::None), &D16),
        (config(64, 1e5, RopeScaling::None), &D64),
        (config(16, 1e4, RopeScaling::Linear { factor: 4.0 }), &LINEAR),
        (config(64, 5e5, llama3(32.0, 1.0, 4.0, 8192)), &LLAMA3),
        (config(32, 1e4, llama3(8.0, 1.3, 3.7, 512)), &LLAMA3_ODD),
    ];
    for (config, expected) in cases {
        let ours = inverse_frequencies(&config);
        assert_eq!(ours.len(), expected.len());
        for (i, (a, b)) in ours.iter().zip(expected).enumerate() {
            let off = a.to_bits().abs_diff(*b);
            assert!(off <= 1, "{:?} [{i}]: {a} {} ({off})", config.rope_scaling, f32::from_bits(*b));
        }
    }
}

/// The converter to GGUF stores Llama 3's scaling as one divisor a frequency, computed by this formula.
#[test]
fn factors_of_a_gguf_file_equal_llama3() {
    for (factor, low, high, original) in [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (8.0, 1.3, 3.7, 512)] {
        let plain = inverse_frequencies(&config(128, 5e5, RopeScaling::None));
        let divisor = |f: &f32| {
            let wavelength = 2.0 * std::f64::consts::PI / f64::from(*f);
            let (longest, shortest) = (f64::from(original) / low, f64::from(original) / high);
            let smooth = (f64::from(original) / wavelength - low) / (high - low);
            match wavelength {
                w if w < shortest => 1.0,
                w if w > longest => factor as f32,
                _ => (1.0 / ((1.0 - smooth) / factor + smooth)) as f32,
            }
        };
        let factors = plain.iter().map(divisor).collect();
        let by_factors = inverse_frequencies(&config(128, 5e5, RopeScaling::Factors(factors)));
        let scaling = llama3(factor as f32, low as f32, high as f32, original as usize);
        for (a, b) in by_factors.iter().zip(inverse_frequencies(&config(128, 5e5, scaling))) {
            assert!((a - b).abs() <= 2e-6 * b, "{a} {b}");
        }
    }
}

#[test]
fn factors_divide() {
    let plain = inverse_frequencies(&config(16, 1e4, RopeScaling::None));
    let factors: Vec<f32> = (1..=8).map(|i| i as f32).collect();
    let divided = inverse_frequencies(&config(16, 1e4, RopeScaling::Factors(factors.clone())));
    for i in 0..8 {
        assert_eq!(divided[i], plain[i] / factors[i]);
    }
}

const D16: [u32; 8] =
    [0x3f80_0000, 0x3ea1_e89b, 0x3dcc_cccd, 0x3d01_86e3, 0x3c23_d70a, 0x3b4f_3e38, 0x3a83_126f, 0x39a5_cb60];
const D64: [u32; 32] = [
    0x3f80_0000,
    0x3f32_a506,
    0x3ef9_53cf,
    0x3ead_fcff,
    0x3e72_d423,
    0x3e29_7409,
    0x3dec_7fd6,
    0x3da5_0956,
    0x3d66_55c2,
    0x3d20_bc1d,
    0x3ce0_54d2,
    0x3c9c_8b97,
    0x3c5a_7bf2,
    0x3c18_7705,
    0x3bd4_ca15,
    0x3b94_7dae,
    0x3b4f_3e38,
    0x3b10_9edb,
    0x3ac9_d75c,
    0x3a8c_d9db,
    0x3a44_948c,
    0x3a09_2e02,
    0x39bf_74d7,
    0x3985_9aa9,
    0x393a_7753,
    0x3902_1f2b,
    0x38b5_9b1b,
    0x387d_75d4,
    0x3830_df52,
    0x37f6_da96,
    0x37ac_431d,
    0x3770_6b6d,
];
const LINEAR: [u32; 8] =
    [0x3e80_0000, 0x3da1_e89b, 0x3ccc_cccd, 0x3c01_86e3, 0x3b23_d70a, 0x3a4f_3e38, 0x3983_126f, 0x38a5_cb60];
const LLAMA3: [u32; 32] = [
    0x3f80_0000,
    0x3f29_e1c6,
    0x3ee1_77bc,
    0x3e95_9ee3,
    0x3e46_93b0,
    0x3e03_c6a0,
    0x3dae_e4ad,
    0x3d68_1e67,
    0x3d1a_08c8,
    0x3ccc_6f49,
    0x3c87_a9c3,
    0x3c34_0d6d,
    0x3bee_f74f,
    0x3b9e_9402,
    0x3b52_7720,
    0x3aa9_279b,
    0x39e1_3620,
    0x38cb_98f7,
    0x37a3_418d,
    0x3758_ac81,
    0x370f_c8f8,
    0x36be_d4f4,
    0x367d_45c3,
    0x3628_126b,
    0x35df_10c4,
    0x3594_06cb,
    0x3544_7610,
    0x3502_5f34,
    0x34ad_07a7,
    0x3465_a54d,
    0x3418_64a7,
    0x33ca_41b0,
];
const LLAMA3_ODD: [u32; 16] = [
    0x3f80_0000,
    0x3f0f_f59a,
    0x3ea1_e89b,
    0x3e36_1887,
    0x3dcc_cccd,
    0x3d66_55c2,
    0x3c98_f9fe,
    0x3b51_0420,
    0x3aa3_d70a,
    0x3a38_449c,
    0x39cf_3e38,
    0x3969_1528,
    0x3903_126f,
    0x3893_6a16,
    0x3825_cb60,
    0x37ba_7753,
];
