// Rows of the embedding for the tokens of a batch.
#include "weight.cuh"

struct EmbedArgs {
    Weight table;
    const u32* tokens;  // [T]
    f32* out;           // [T, cols]
};

// A block a token.
template <int FORMAT> DEVICE void embed(const EmbedArgs& a) {
    u32 token = a.tokens[blockIdx.x];
    f32* out = a.out + (u64)blockIdx.x * a.table.cols;
    for (u32 col = threadIdx.x; col < a.table.cols; col += blockDim.x) out[col] = weight_at<FORMAT>(a.table, token, col);
}

KERNEL(embed_f32, EmbedArgs, 256, embed<W_F32>(a))
KERNEL(embed_bf16, EmbedArgs, 256, embed<W_BF16>(a))
KERNEL(embed_q8_0, EmbedArgs, 256, embed<W_Q8_0>(a))
KERNEL(embed_q4_0, EmbedArgs, 256, embed<W_Q4_0>(a))
KERNEL(embed_q4_1, EmbedArgs, 256, embed<W_Q4_1>(a))
KERNEL(embed_q4_k, EmbedArgs, 256, embed<W_Q4_K>(a))
