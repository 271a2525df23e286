// Runs one kernel on what stands on standard input and writes its buffers to standard output. Built by nvcc it runs on
// the first GPU, by a C++ compiler with -DLIMA_HOST on the host (host.hpp): the tests are the same.
//
//   nvcc -arch=sm_90a -fmad=false -o runner kernels/runner.cu
//   g++ -std=c++17 -O1 -ffp-contract=off -DLIMA_HOST -x c++ -o runner kernels/runner.cu
//
// Input, little endian: length and name; grid (3 u32), threads (u32); length and bytes of the argument struct; number
// of buffers, and of each: offset of its pointer in the struct (u32), length (u64), bytes. Output: the buffers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "attention.cu"
#include "dequantize.cu"
#include "embed.cu"
#include "product.cu"
#include "rope.cu"
#include "rows.cu"

#ifdef LIMA_HOST
typedef void (*Function)(const host::Launch*, const void*);
#define ENTRY(name) {#name, name},
#else
typedef const void* Function;
#define ENTRY(name) {#name, reinterpret_cast<const void*>(name)},
#endif

static const struct {
    const char* name;
    Function run;
} KERNELS[] = {
    ENTRY(prepare_norm_f32) ENTRY(prepare_norm_bf16) ENTRY(prepare_norm_int8)
    ENTRY(prepare_plain_f32) ENTRY(prepare_plain_bf16) ENTRY(prepare_plain_int8)
    ENTRY(silu_mul_f32) ENTRY(silu_mul_bf16) ENTRY(silu_mul_int8)
    ENTRY(embed_f32) ENTRY(embed_bf16) ENTRY(embed_q8_0) ENTRY(embed_q4_0) ENTRY(embed_q4_1) ENTRY(embed_q4_k)
    ENTRY(dequantize_q8_0) ENTRY(dequantize_q4_0) ENTRY(dequantize_q4_1) ENTRY(dequantize_q4_k)
    ENTRY(rope_f32) ENTRY(rope_bf16) ENTRY(rope_int8)
    ENTRY(attention_f32) ENTRY(attention_bf16) ENTRY(attention_int8) ENTRY(attention_join)
    ENTRY(product_q8_0_1) ENTRY(product_q8_0_4) ENTRY(product_q8_0_8)
    ENTRY(product_q4_0_1) ENTRY(product_q4_0_4) ENTRY(product_q4_0_8)
    ENTRY(product_q4_1_1) ENTRY(product_q4_1_4) ENTRY(product_q4_1_8)
    ENTRY(product_q4_k_1) ENTRY(product_q4_k_4) ENTRY(product_q4_k_8)
};

static void check(bool ok, const char* what) {
    if (ok) return;
    std::fprintf(stderr, "runner: %s\n", what);
    std::exit(1);
}
static void read(void* to, size_t n) { check(n == 0 || std::fread(to, 1, n, stdin) == n, "the input ends too early"); }
template <typename T> static T number() {
    T x;
    read(&x, sizeof x);
    return x;
}

int main() {
    std::string name(number<u32>(), ' ');
    read(&name[0], name.size());
    u32 grid[3], threads;
    read(grid, sizeof grid);
    threads = number<u32>();
    std::vector<char> args(number<u32>());
    read(args.data(), args.size());
    struct Buffer {
        std::vector<char> bytes;
        void* at;
    };
    std::vector<Buffer> buffers(number<u32>());
    for (Buffer& b : buffers) {
        u32 offset = number<u32>();
        check(offset + sizeof(void*) <= args.size(), "a pointer outside the arguments");
        b.bytes.resize(number<u64>());
        read(b.bytes.data(), b.bytes.size());
#ifdef LIMA_HOST
        // Exactly as long as it says, so that a checking allocator sees what lies outside.
        b.at = std::malloc(b.bytes.size());
        std::memcpy(b.at, b.bytes.data(), b.bytes.size());
#else
        check(cudaMalloc(&b.at, b.bytes.size() + 16) == cudaSuccess, "no GPU, or no memory on it");
        check(cudaMemcpy(b.at, b.bytes.data(), b.bytes.size(), cudaMemcpyHostToDevice) == cudaSuccess, "upload");
#endif
        std::memcpy(&args[offset], &b.at, sizeof b.at);
    }
    Function run = nullptr;
    for (const auto& kernel : KERNELS)
        if (name == kernel.name) run = kernel.run;
    check(run != nullptr, "no such kernel");
#ifdef LIMA_HOST
    host::Launch launch{{grid[0], grid[1], grid[2]}, threads};
    run(&launch, args.data());
#else
    void* pointers[] = {args.data()};
    cudaError_t status = cudaLaunchKernel(run, dim3(grid[0], grid[1], grid[2]), dim3(threads), pointers, 0, nullptr);
    if (status == cudaSuccess) status = cudaDeviceSynchronize();
    check(status == cudaSuccess, cudaGetErrorString(status));
#endif
    for (Buffer& b : buffers) {
#ifdef LIMA_HOST
        std::memcpy(b.bytes.data(), b.at, b.bytes.size());
        std::free(b.at);
#else
        check(cudaMemcpy(b.bytes.data(), b.at, b.bytes.size(), cudaMemcpyDeviceToHost) == cudaSuccess, "download");
#endif
        check(b.bytes.empty() || std::fwrite(b.bytes.data(), 1, b.bytes.size(), stdout) == b.bytes.size(), "output");
    }
    return 0;
}
