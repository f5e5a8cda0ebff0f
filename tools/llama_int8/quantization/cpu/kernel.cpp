// int8 products and one decode step of a LLaMA on a CPU: for AVX-512 VNNI, AVX-VNNI, AVX2 or NEON.
//
// Plain C functions on plain pointers: no PyTorch header, so it compiles in seconds, and Python
// calls it through ctypes. The file reads from the inside out: numbers, a group of 32 activations,
// a tile of the product, a whole linear layer, and at the end the decode step.
//
// Format of a layer's weights, M outputs and K inputs: codes q in [-127, 127], stored as bytes
// q + 128 in the order [M / 32][K / 4][32][4], so that one vector load brings the next 4 inputs of
// 16 (AVX-512), 8 (AVX2) or 4 (NEON) outputs. Every 32 inputs of an output share a scale, in bf16, in the order
// [M / 32][K / 32][32]. Zeros fill M and K up to multiples of 32. A layer that
// was not quantized has its weights in bf16 in the order [M / 32][K / 2][32][2], filled up in the same
// way: with it the decode step runs in 16 bit, and shows what int8 itself is worth.
//
// Compile with -ffp-contract=off: a fused multiply-add rounds once where PyTorch rounds twice, and
// the int8 products shall give the same bits as PyTorch's. Where no bits are compared, the code asks
// for `fma` by name.

#ifdef __aarch64__
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr int32_t OFFSET = 128;  // their instruction multiplies unsigned bytes, q + 128, by signed ones
#else
constexpr int32_t OFFSET = 0;
#endif

constexpr int64_t GROUP = 32;  // inputs that share a scale, of a token or of an output
constexpr int64_t ROWS = 32;   // outputs in a block of the weights
constexpr int64_t KEYS = 16;   // keys in a block of the cache
constexpr int64_t CHUNK = 64;  // keys that one task attends to, a multiple of KEYS

struct Linear {
    const void* weights;    // codes + 128; or bf16
    const uint16_t* scale;  // bf16, or null
    const float* bias;      // M, or null
    int64_t outputs, inputs;
    // 1: activations are int8 codes. 2: and, again in int8, what rounding them left. 0: not quantized.
    // -1: the weights alone are, and are multiplied in FP32.
    int64_t planes;
};

struct Layer {
    const float* input_norm;
    Linear qkv;
    Linear o;
    const float* post_attention_norm;
    Linear gate_up;
    Linear down;
};

struct Model {
    const uint16_t* embedding;  // bf16 (vocabulary, width)
    const Layer* layers;
    const float* norm;
    Linear head;
    const float* cos;  // (context, head_dim / 2)
    const float* sin;
    // The cache, in bf16; or as int8 codes, where there are scales, one for every token and head.
    // A vector load of keys brings two dimensions of several keys.
    void* keys;          // (layers, batch, kv_heads, context / KEYS, head_dim / 2, KEYS, 2)
    void* values;        // (layers, batch, kv_heads, context, head_dim)
    float* key_scale;    // (layers, batch, kv_heads, context), filled up to whole blocks; or null
    float* value_scale;  // the same
    int64_t layer_count, width, inner, heads, kv_heads, head_dim, context, batch;
    float eps;
};

// ---- numbers ---------------------------------------------------------------------------------

static inline float from_bf16(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

static inline uint16_t to_bf16(float value) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : uint16_t(rounded);  // NaN stays NaN
}

static inline float load(const float* p) { return *p; }
static inline float load(const uint16_t* p) { return from_bf16(*p); }
static inline float load(const int8_t* p) { return *p; }
static inline void store(float* p, float value) { *p = value; }
static inline void store(uint16_t* p, float value) { *p = to_bf16(value); }

static inline float round_to_even(float x) {  // for |x| < 2^22: the sum has no bits left below 1
    return (x + 12582912.0f) - 12582912.0f;
}

static inline float fast_exp(float x) {  // 2^n times a polynomial, relative error about 2e-7
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = round_to_even(x * 1.44269504f);
    const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const uint32_t bits = uint32_t(int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

// ---- activations: int8 codes, one scale for every 32 -------------------------------------------

struct Activations {
    std::vector<int8_t> codes;   // (tokens, padded inputs)
    std::vector<float> scale;    // (tokens, groups)
    std::vector<int32_t> start;  // (tokens, groups): what the accumulators begin with
    int64_t inputs = 0, groups = 0;

    void resize(int64_t tokens, int64_t inputs_) {
        inputs = (inputs_ + GROUP - 1) / GROUP * GROUP;
        groups = inputs / GROUP;
        codes.resize(tokens * inputs);
        scale.resize(tokens * groups);
        start.resize(tokens * groups);
    }
};

// Codes and scale of `count` numbers. Returns the sum of the codes.
__attribute__((always_inline)) static inline int32_t quantize(const float* x, int64_t count, int8_t* codes, float* scale) {
    // The bits of |x|, read as integers, are in the order of the numbers, with infinity and NaN at
    // the end: one maximum finds the largest and does not lose a NaN.
    int32_t largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; i++) {
        int32_t bits;
        std::memcpy(&bits, x + i, 4);
        largest = std::max(largest, bits & 0x7FFFFFFF);
    }
    float absmax;
    std::memcpy(&absmax, &largest, 4);
    const bool finite = largest < 0x7F800000;
    const bool zero = absmax < 1e-30f;  // 127 / absmax would be infinite soon
    const float steps = finite && !zero ? 127.0f / absmax : 0.0f;
    *scale = finite ? (zero ? 0.0f : absmax / 127.0f) : NAN;  // NaN in, NaN out
    int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        const int32_t code = finite ? int32_t(round_to_even(x[i] * steps)) : 0;
        codes[i] = int8_t(code);
        sum += code;
    }
    return sum;
}

static void quantize_group(const float* x, int8_t* codes, float* scale, int32_t* start) {
    *start = -OFFSET * quantize(x, GROUP, codes, scale);  // what the products below have too much
}

// One token: a row of codes, or with two planes a second row, of what rounding left in the first.
template <class T>
static void quantize_token(const T* x, int64_t inputs, Activations& out, int64_t row, int64_t planes) {
    float group[GROUP];
    for (int64_t g = 0; g < out.groups; g++) {
        const int64_t first = g * GROUP, count = std::min(GROUP, inputs - first);
        for (int64_t i = 0; i < count; i++) group[i] = load(x + first + i);
        for (int64_t i = count; i < GROUP; i++) group[i] = 0.0f;
        for (int64_t r = row; r < row + planes; r++) {
            int8_t* codes = out.codes.data() + r * out.inputs + first;
            float* scale = &out.scale[r * out.groups + g];
            quantize_group(group, codes, scale, &out.start[r * out.groups + g]);
            if (r + 1 == row + planes) break;
            for (int64_t i = 0; i < GROUP; i++) group[i] -= *scale * codes[i];
        }
    }
}

// ---- a tile: TOKENS rows of codes times a block of 32 rows of weights --------------------
// Vectors of LANES numbers; dot4 adds to each int32 lane the products of 4 weights with 4 codes.

#ifdef __AVX512VNNI__
constexpr int LANES = 16, MOST = 8;  // tokens in a tile: as many as registers hold the sums of
typedef __m512i Ints;
typedef __m512 Floats;
static const char* const NAME = "AVX-512 VNNI";
static inline Ints ints(int32_t value) { return _mm512_set1_epi32(value); }
static inline Floats floats(float value) { return _mm512_set1_ps(value); }
static inline Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
static inline Floats load_bf16(const uint16_t* p) {
    const Ints wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
static inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
static inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
static inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
static inline Ints up16(Ints v) { return _mm512_slli_epi32(v, 16); }
static inline Ints down16(Ints v) { return _mm512_srai_epi32(v, 16); }
static inline Floats as_floats(Ints v) { return _mm512_castsi512_ps(v); }
template <int BYTE>  // of each lane, counted from the lowest, with its sign
static inline Ints signed_byte(Ints v) { return _mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * BYTE), 24); }
static inline Ints load_int16(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
}
static inline void dot4(Ints& sum, Ints weights, Ints codes) {
    // One instruction: unsigned bytes times signed bytes. As assembly, because gcc 12 adds copies of
    // registers to _mm512_dpbusd_epi32 and loses a quarter of the speed.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(codes));
}
#elif !defined(__aarch64__)
constexpr int LANES = 8, MOST = 2;
typedef __m256i Ints;
typedef __m256 Floats;
#ifdef __AVXVNNI__
static const char* const NAME = "AVX-VNNI";
#else
static const char* const NAME = "AVX2";
#endif
static inline Ints ints(int32_t value) { return _mm256_set1_epi32(value); }
static inline Floats floats(float value) { return _mm256_set1_ps(value); }
static inline Ints load_ints(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline Floats load_bf16(const uint16_t* p) {
    const Ints wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline void store_floats(float* p, Floats v) { _mm256_storeu_ps(p, v); }
static inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
static inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
static inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
static inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
static inline Ints up16(Ints v) { return _mm256_slli_epi32(v, 16); }
static inline Ints down16(Ints v) { return _mm256_srai_epi32(v, 16); }
static inline Floats as_floats(Ints v) { return _mm256_castsi256_ps(v); }
template <int BYTE>
static inline Ints signed_byte(Ints v) { return _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * BYTE), 24); }
static inline Ints load_int16(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
}
static inline void dot4(Ints& sum, Ints weights, Ints codes) {
#ifdef __AVXVNNI__
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weights), "x"(codes));
#else
    // AVX2 adds pairs of products in 16 bits. With codes up to 127 a pair is at most 32,258: exact.
    const Ints q = _mm256_xor_si256(weights, _mm256_set1_epi8(char(0x80)));  // q + 128 -> q
    const Ints pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(q, codes));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
#else
constexpr int LANES = 4, MOST = 2;
typedef int32x4_t Ints;
typedef float32x4_t Floats;
static const char* const NAME = "NEON";
static inline Ints ints(int32_t value) { return vdupq_n_s32(value); }
static inline Floats floats(float value) { return vdupq_n_f32(value); }
static inline Ints load_ints(const void* p) { return vreinterpretq_s32_u8(vld1q_u8((const uint8_t*)p)); }
static inline Floats load_bf16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
static inline void store_floats(float* p, Floats v) { vst1q_f32(p, v); }
static inline Floats to_floats(Ints v) { return vcvtq_f32_s32(v); }
static inline Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
static inline Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
static inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
static inline Floats load_floats(const float* p) { return vld1q_f32(p); }
static inline Ints up16(Ints v) { return vshlq_n_s32(v, 16); }
static inline Ints down16(Ints v) { return vshrq_n_s32(v, 16); }
static inline Floats as_floats(Ints v) { return vreinterpretq_f32_s32(v); }
template <int BYTE>
static inline Ints signed_byte(Ints v) { return vshrq_n_s32(vshlq_n_s32(v, 24 - 8 * BYTE), 24); }
static inline Ints load_int16(const int8_t* p) { return vreinterpretq_s32_s16(vmovl_s8(vld1_s8(p))); }
static inline void dot4(Ints& sum, Ints weights, Ints codes) {
    const Ints q = veorq_s32(weights, ints(int32_t(0x80808080)));  // q + 128 -> q: both are signed
    sum = vdotq_s32(sum, vreinterpretq_s8_s32(q), vreinterpretq_s8_s32(codes));
}
#endif

// Pairs of neighbours: the first ones in one vector, the second ones in another.
static inline void load_pairs(const uint16_t* p, Floats& first, Floats& second) {
    const Ints pairs = load_ints(p);  // a bf16 is the upper half of a float
    first = as_floats(up16(pairs));
    second = as_floats(pairs & ints(int32_t(0xFFFF0000)));
}
static inline void load_pairs(const int8_t* p, Floats& first, Floats& second) {
    const Ints pairs = load_int16(p);
    first = to_floats(down16(up16(pairs)));
    second = to_floats(down16(pairs));
}

template <int TOKENS>
static void tile(const Activations& x, int64_t token, const uint8_t* weights, const uint16_t* scales,
                 float* out) {
    constexpr int VECTORS = ROWS / LANES;
    Floats total[TOKENS][VECTORS];
    for (auto& row : total)
        for (auto& v : row) v = floats(0.0f);
    for (int64_t g = 0; g < x.groups; g++) {
        Ints sum[TOKENS][VECTORS];
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) sum[t][v] = ints(x.start[(token + t) * x.groups + g]);
        // The next 4 inputs, from the k-th on. Inlined, so that the sums stay in registers.
        const auto add_inputs = [&](int64_t k) __attribute__((always_inline)) {
            const uint8_t* w = weights + k * ROWS;
            Ints block[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) block[v] = load_ints(w + v * 4 * LANES);
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++) {
                int32_t four;  // the codes of 4 inputs
                std::memcpy(&four, &x.codes[(token + t) * x.inputs + k], 4);
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; v++) dot4(sum[t][v], block[v], ints(four));
            }
        };
        if (TOKENS == 1) {  // written out: with one token, loads are all that matters
#pragma GCC unroll 8
            for (int64_t k = 0; k < GROUP; k += 4) add_inputs(g * GROUP + k);
        } else {
#pragma GCC unroll 1
            for (int64_t k = 0; k < GROUP; k += 4) add_inputs(g * GROUP + k);
        }
        Floats of_weights[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) of_weights[v] = load_bf16(scales + g * ROWS + v * LANES);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) {
                const Floats scale = mul(floats(x.scale[(token + t) * x.groups + g]), of_weights[v]);
                total[t][v] = add(total[t][v], mul(to_floats(sum[t][v]), scale));
            }
    }
    for (int t = 0; t < TOKENS; t++)
        for (int v = 0; v < VECTORS; v++) store_floats(out + t * ROWS + v * LANES, total[t][v]);
}

// ---- the same tile for weights in bf16, two neighbouring inputs of an output side by side ---------

// `add_pair(sum, pairs, x)` adds to each lane of `sum` the products of two weights with two inputs of
// one token. Activations are FP32, or bf16 where the processor has an instruction for such pairs.
template <int TOKENS, class T, class AddPair>
__attribute__((always_inline)) static inline void tile_of_pairs(
    const T* x, int64_t inputs, const uint16_t* weights, float* out, AddPair add_pair) {
    constexpr int VECTORS = ROWS / LANES;
    constexpr int CHAINS = TOKENS == 1 ? 8 / VECTORS : 1;  // sums that do not wait for each other
    Floats sum[TOKENS * CHAINS][VECTORS];
#pragma GCC unroll 8
    for (auto& row : sum)
#pragma GCC unroll 8
        for (auto& v : row) v = floats(0.0f);
    for (int64_t k = 0; k < inputs; k += 2 * CHAINS) {
#pragma GCC unroll 8
        for (int c = 0; c < CHAINS; c++) {
            const uint16_t* w = weights + (k + 2 * c) * ROWS;
            Ints block[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) block[v] = load_ints(w + v * 2 * LANES);
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; v++)
                    add_pair(sum[t * CHAINS + c][v], block[v], x + t * inputs + k + 2 * c);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            Floats total = sum[t * CHAINS][v];
#pragma GCC unroll 8
            for (int c = 1; c < CHAINS; c++) total = add(total, sum[t * CHAINS + c][v]);
            store_floats(out + t * ROWS + v * LANES, total);
        }
}

template <int TOKENS>
static void tile_bf16(const float* x, int64_t inputs, const uint16_t* weights, float* out) {
    tile_of_pairs<TOKENS>(x, inputs, weights, out,
                          [](Floats& sum, Ints pairs, const float* two) __attribute__((always_inline)) {
                              sum = fma(as_floats(up16(pairs)), floats(two[0]), sum);
                              sum = fma(as_floats(pairs & ints(int32_t(0xFFFF0000))), floats(two[1]), sum);
                          });
}

#if defined(__AVX512VNNI__) && (defined(__clang__) || __GNUC__ >= 10)
static bool has_dot2() { return __builtin_cpu_supports("avx512bf16"); }
#define WITH_DOT2 __attribute__((target("avx512bf16")))

template <int TOKENS>
WITH_DOT2 static void tile_bf16(const uint16_t* x, int64_t inputs, const uint16_t* weights, float* out) {
    tile_of_pairs<TOKENS>(x, inputs, weights, out,
                          [](Floats& sum, Ints pairs, const uint16_t* two) __attribute__((always_inline)) {
                              int32_t both;
                              std::memcpy(&both, two, 4);
                              asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(pairs), "v"(ints(both)));
                          });
}
#else
static bool has_dot2() { return false; }
template <int TOKENS>
static void tile_bf16(const uint16_t*, int64_t, const uint16_t*, float*) {}  // never called
#endif

// ---- the same for int8 weights that are widened to FP32: what the integer instruction is worth ----

template <int TOKENS>
static void tile_widened(const float* x, int64_t inputs, const uint8_t* weights, const uint16_t* scales,
                         float* out) {
    constexpr int VECTORS = ROWS / LANES;
    constexpr int CHAINS = TOKENS == 1 ? 2 : 1;
    Floats total[TOKENS][VECTORS];
    for (auto& row : total)
        for (auto& v : row) v = floats(0.0f);
    for (int64_t g = 0; g < inputs / GROUP; g++) {
        Floats sum[TOKENS * CHAINS][VECTORS];
        for (auto& row : sum)
            for (auto& v : row) v = floats(0.0f);
        for (int64_t k = g * GROUP; k < (g + 1) * GROUP; k += 4) {
            Ints block[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++)  // q + 128 -> q
                block[v] = load_ints(weights + k * ROWS + v * 4 * LANES) ^ ints(int32_t(0x80808080));
            const auto add_input = [&](const Ints* codes, int64_t i) __attribute__((always_inline)) {
#pragma GCC unroll 8
                for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 8
                    for (int v = 0; v < VECTORS; v++) {
                        Floats& chain = sum[t * CHAINS + i % CHAINS][v];
                        chain = fma(to_floats(codes[v]), floats(x[t * inputs + k + i]), chain);
                    }
            };
            Ints codes[4][VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) {
                codes[0][v] = signed_byte<0>(block[v]);
                codes[1][v] = signed_byte<1>(block[v]);
                codes[2][v] = signed_byte<2>(block[v]);
                codes[3][v] = signed_byte<3>(block[v]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) add_input(codes[i], i);
        }
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            const Floats scale = load_bf16(scales + g * ROWS + v * LANES);
#pragma GCC unroll 8
            for (int t = 0; t < TOKENS; t++) {
                Floats whole = sum[t * CHAINS][v];
                if (CHAINS == 2) whole = add(whole, sum[t * CHAINS + CHAINS - 1][v]);
                total[t][v] = fma(whole, scale, total[t][v]);
            }
        }
    }
    for (int t = 0; t < TOKENS; t++)
        for (int v = 0; v < VECTORS; v++) store_floats(out + t * ROWS + v * LANES, total[t][v]);
}

// ---- a linear layer --------------------------------------------------------------------------

// `tile_of(count, row, b, out)` computes `count` rows, from `row` on, times the b-th block of weights.
template <class T, class Tile>
static void multiply(int64_t rows, int64_t planes, const Linear& layer, T* y, bool add_to_y,
                     int threads, Tile tile_of) {
    const int64_t blocks = (layer.outputs + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(threads) if (blocks > 1) schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = b * ROWS, count = std::min(ROWS, layer.outputs - first);
        float out[MOST * ROWS];
        for (int64_t row = 0, taken = MOST; row < rows; row += taken) {
            while (taken > rows - row) taken /= 2;
            tile_of(taken, row, b, out);
            for (int64_t r = 0; r < taken; r += planes) {
                T* token = y + (row + r) / planes * layer.outputs + first;
                for (int64_t i = 0; i < count; i++) {
                    float value = out[r * ROWS + i];
                    if (planes == 2) value += out[(r + 1) * ROWS + i];
                    if (layer.bias) value += layer.bias[first + i];
                    store(token + i, add_to_y ? load(token + i) + value : value);
                }
            }
        }
    }
}

template <class T>
static void linear_int8(const T* x, int64_t tokens, const Linear& layer, T* y, bool add_to_y,
                        int threads) {
    static thread_local Activations codes_of_this_thread;
    Activations& codes = codes_of_this_thread;  // one name for all threads of the loop
    const int64_t planes = layer.planes;
    codes.resize(tokens * planes, layer.inputs);
#pragma omp parallel for num_threads(threads) if (tokens > 1) schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        quantize_token(x + t * layer.inputs, layer.inputs, codes, t * planes, planes);
    multiply(tokens * planes, planes, layer, y, add_to_y, threads,
             [&](int64_t count, int64_t row, int64_t b, float* out) {
                 const uint8_t* w = (const uint8_t*)layer.weights + b * ROWS * codes.inputs;
                 const uint16_t* scale = layer.scale + b * ROWS * codes.groups;
                 if (count == 8) tile<8>(codes, row, w, scale, out);
                 else if (count == 4) tile<4>(codes, row, w, scale, out);
                 else if (count == 2) tile<2>(codes, row, w, scale, out);
                 else tile<1>(codes, row, w, scale, out);
             });
}

// The tokens as numbers of another type, each row filled up with zeros.
template <class To, class T>
static const To* filled_up(const T* x, int64_t tokens, int64_t inputs, int64_t full) {
    static thread_local std::vector<To> rows;
    rows.resize(tokens * full);
    for (int64_t t = 0; t < tokens; t++) {
        To* row = rows.data() + t * full;
#pragma omp simd
        for (int64_t i = 0; i < inputs; i++) store(row + i, load(x + t * inputs + i));
        std::fill(row + inputs, row + full, To(0));
    }
    return rows.data();
}

template <class Activation, class T>
static void linear_bf16(const T* x, int64_t tokens, const Linear& layer, T* y, bool add_to_y,
                        int threads) {
    const int64_t inputs = (layer.inputs + GROUP - 1) / GROUP * GROUP;
    const Activation* rows = filled_up<Activation>(x, tokens, layer.inputs, inputs);
    multiply(tokens, 1, layer, y, add_to_y, threads,
             [&](int64_t count, int64_t row, int64_t b, float* out) {
                 const uint16_t* w = (const uint16_t*)layer.weights + b * ROWS * inputs;
                 const Activation* from = rows + row * inputs;
                 if (count == 8) tile_bf16<8>(from, inputs, w, out);
                 else if (count == 4) tile_bf16<4>(from, inputs, w, out);
                 else if (count == 2) tile_bf16<2>(from, inputs, w, out);
                 else tile_bf16<1>(from, inputs, w, out);
             });
}

template <class T>
static void linear_widened(const T* x, int64_t tokens, const Linear& layer, T* y, bool add_to_y,
                           int threads) {
    const int64_t inputs = (layer.inputs + GROUP - 1) / GROUP * GROUP;
    const float* rows = filled_up<float>(x, tokens, layer.inputs, inputs);
    multiply(tokens, 1, layer, y, add_to_y, threads,
             [&](int64_t count, int64_t row, int64_t b, float* out) {
                 const uint8_t* w = (const uint8_t*)layer.weights + b * ROWS * inputs;
                 const uint16_t* scale = layer.scale + b * ROWS * (inputs / GROUP);
                 const float* from = rows + row * inputs;
                 if (count == 8) tile_widened<8>(from, inputs, w, scale, out);
                 else if (count == 4) tile_widened<4>(from, inputs, w, scale, out);
                 else if (count == 2) tile_widened<2>(from, inputs, w, scale, out);
                 else tile_widened<1>(from, inputs, w, scale, out);
             });
}

template <class T>
static void linear(const T* x, int64_t tokens, const Linear& layer, T* y, bool add_to_y,
                   int threads) {
    static const bool dot2 = has_dot2();
    if (layer.planes > 0) linear_int8(x, tokens, layer, y, add_to_y, threads);
    else if (layer.planes < 0) linear_widened(x, tokens, layer, y, add_to_y, threads);
    else if (dot2) linear_bf16<uint16_t>(x, tokens, layer, y, add_to_y, threads);
    else linear_bf16<float>(x, tokens, layer, y, add_to_y, threads);
}

// ---- one decode step: everything between the products in FP32, one token of each sequence -------

static void rms_norm(const float* x, const float* weight, int64_t width, float eps, float* out) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++) squares += x[i] * x[i];
    const float factor = 1 / std::sqrt(squares / width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) out[i] = x[i] * factor * weight[i];
}

static void rotate(float* head, const float* cos, const float* sin, int64_t half) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float first = head[i], second = head[i + half];
        head[i] = first * cos[i] - second * sin[i];
        head[i + half] = second * cos[i] + first * sin[i];
    }
}

// ---- decode attention: flash-decoding ------------------------------------------------------------
// A task is a chunk of keys of one key-value head, with the queries of up to 4 heads that share it.
// It leaves for each query the largest score, the sum of exp(score - largest), and the values weighted
// by those exponentials; `merge` joins the chunks. Chunks do not depend on the number of threads.

// scores[h][t] = query h times key t, for `count` keys from a block's beginning on. T: of the cache.
template <int HEADS, class T>
static void score(const float* query, const T* keys, const float* scale, int64_t count, int64_t dim,
                  float (*scores)[CHUNK]) {
    constexpr int PAIRS = HEADS < 3 ? 4 / HEADS : 1;  // of dimensions at once: sums that do not wait
    for (int64_t t = 0; t < count; t += LANES) {
        const T* block = keys + t / KEYS * KEYS * dim + t % KEYS * 2;
        Floats sum[HEADS][2 * PAIRS];
        for (auto& head : sum)
            for (auto& v : head) v = floats(0.0f);
        const auto add_pair = [&](int64_t pair, int chain) {
            Floats first, second;
            load_pairs(block + pair * 2 * KEYS, first, second);
#pragma GCC unroll 4
            for (int h = 0; h < HEADS; h++) {
                const float* q = query + h * dim + 2 * pair;
                sum[h][2 * chain] = fma(first, floats(q[0]), sum[h][2 * chain]);
                sum[h][2 * chain + 1] = fma(second, floats(q[1]), sum[h][2 * chain + 1]);
            }
        };
        int64_t pair = 0;
        for (; pair + PAIRS <= dim / 2; pair += PAIRS)
#pragma GCC unroll 4
            for (int chain = 0; chain < PAIRS; chain++) add_pair(pair + chain, chain);
        for (; pair < dim / 2; pair++) add_pair(pair, 0);
        for (int h = 0; h < HEADS; h++) {
            Floats total = sum[h][0];
            for (int i = 1; i < 2 * PAIRS; i++) total = add(total, sum[h][i]);
            store_floats(scores[h] + t, scale ? mul(total, load_floats(scale + t)) : total);
        }
    }
}

// out[h][0 .. LINES x 2 x LANES) = sum over t of weights[h][t] times value t. Rows of `dim` numbers.
template <int HEADS, int LINES, class T>
static void weigh(const float (*weights)[CHUNK], const T* values, int64_t count, int64_t dim,
                  float* out, int64_t stride) {
    Floats sum[HEADS][2 * LINES];
    for (auto& head : sum)
        for (auto& v : head) v = floats(0.0f);
    for (int64_t t = 0; t < count; t++) {
#pragma GCC unroll 2
        for (int line = 0; line < LINES; line++) {
            Floats first, second;
            load_pairs(values + t * dim + line * 2 * LANES, first, second);
#pragma GCC unroll 4
            for (int h = 0; h < HEADS; h++) {
                const Floats weight = floats(weights[h][t]);
                sum[h][2 * line] = fma(weight, first, sum[h][2 * line]);
                sum[h][2 * line + 1] = fma(weight, second, sum[h][2 * line + 1]);
            }
        }
    }
    for (int h = 0; h < HEADS; h++)
        for (int line = 0; line < LINES; line++) {
            float first[LANES], second[LANES];
            store_floats(first, sum[h][2 * line]);
            store_floats(second, sum[h][2 * line + 1]);
            float* to = out + h * stride + line * 2 * LANES;
            for (int i = 0; i < LANES; i++) to[2 * i] = first[i], to[2 * i + 1] = second[i];
        }
}

template <class T>
struct Chunk {
    const T *keys, *values;
    const float *key_scale, *value_scale;  // null for bf16
    int64_t count;
};

// `out`: HEADS rows of the largest score, the sum, and the `dim` weighted values.
template <int HEADS, class T>
static void attend_chunk(const float* query, const Chunk<T>& c, int64_t dim, float* out) {
    const int64_t count = c.count;
    float weights[HEADS][CHUNK];
    score<HEADS>(query, c.keys, c.key_scale, count, dim, weights);
    const int64_t whole = (count + KEYS - 1) / KEYS * KEYS;  // full vectors
    for (int h = 0; h < HEADS; h++) {
        std::fill(weights[h] + count, weights[h] + whole, -INFINITY);  // less than 1e-37 after exp
        float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
        for (int64_t t = 0; t < whole; t++) largest = std::max(largest, weights[h][t]);
#pragma omp simd reduction(+ : sum)
        for (int64_t t = 0; t < whole; t++) {
            weights[h][t] = fast_exp(weights[h][t] - largest);
            sum += weights[h][t];
        }
        out[h * (dim + 2)] = largest;
        out[h * (dim + 2) + 1] = sum;
        if (c.value_scale)
            for (int64_t t = 0; t < count; t++) weights[h][t] *= c.value_scale[t];
    }
    float* weighted = out + 2;
    int64_t d = 0;
    for (; d + 4 * LANES <= dim; d += 4 * LANES)
        weigh<HEADS, 2>(weights, c.values + d, count, dim, weighted + d, dim + 2);
    for (; d + 2 * LANES <= dim; d += 2 * LANES)
        weigh<HEADS, 1>(weights, c.values + d, count, dim, weighted + d, dim + 2);
    for (; d < dim; d++)
        for (int h = 0; h < HEADS; h++) {
            float sum = 0;
            for (int64_t t = 0; t < count; t++) sum += weights[h][t] * load(c.values + t * dim + d);
            weighted[h * (dim + 2) + d] = sum;
        }
}

// One head's chunks, `stride` numbers from one to the next, become its output.
static void merge(const float* parts, int64_t chunks, int64_t stride, int64_t dim, float* out) {
    float largest = parts[0], sum = 0;
    for (int64_t c = 1; c < chunks; c++) largest = std::max(largest, parts[c * stride]);
    std::fill(out, out + dim, 0.0f);
    for (int64_t c = 0; c < chunks; c++) {
        const float* part = parts + c * stride;
        const float factor = fast_exp(part[0] - largest);
        sum += factor * part[1];
#pragma omp simd
        for (int64_t d = 0; d < dim; d++) out[d] += factor * part[2 + d];
    }
    const float inverse = 1 / sum;
#pragma omp simd
    for (int64_t d = 0; d < dim; d++) out[d] *= inverse;
}

// One layer of the cache, and where the parts of a sequence's key-value head lie.
template <class T>
struct Cache {
    T *keys, *values;
    float *key_scale, *value_scale;
    int64_t rows, context, dim;  // rows: tokens, filled up to whole blocks

    Cache(const Model& m, int64_t layer)
        : rows((m.context + KEYS - 1) / KEYS * KEYS), context(m.context), dim(m.head_dim) {
        const int64_t pairs = layer * m.batch * m.kv_heads;
        keys = (T*)m.keys + pairs * rows * dim;
        values = (T*)m.values + pairs * context * dim;
        key_scale = m.key_scale ? m.key_scale + pairs * rows : nullptr;
        value_scale = m.value_scale ? m.value_scale + pairs * rows : nullptr;
    }

    Chunk<T> chunk(int64_t pair, int64_t first, int64_t count) const {
        const int64_t scales = pair * rows + first;
        return {keys + (pair * rows + first) * dim, values + (pair * context + first) * dim,
                key_scale ? key_scale + scales : nullptr,
                value_scale ? value_scale + scales : nullptr, count};
    }

    // Where a token's value begins, and where each dimension of its key lies.
    T* value(int64_t pair, int64_t position) const {
        return values + (pair * context + position) * dim;
    }
    T& key(int64_t pair, int64_t position, int64_t d) const {
        T* block = keys + (pair * rows + position / KEYS * KEYS) * dim;
        return block[d / 2 * 2 * KEYS + position % KEYS * 2 + d % 2];
    }
};

static void write(const Cache<uint16_t>& c, int64_t pair, int64_t position, const float* key,
                  const float* value) {
    uint16_t* row = c.value(pair, position);
    for (int64_t d = 0; d < c.dim; d++) {
        c.key(pair, position, d) = to_bf16(key[d]);
        row[d] = to_bf16(value[d]);
    }
}

static void write(const Cache<int8_t>& c, int64_t pair, int64_t position, const float* key,
                  const float* value) {
    std::vector<int8_t> codes(c.dim);
    const int64_t scale = pair * c.rows + position;
    quantize(key, c.dim, codes.data(), c.key_scale + scale);
    for (int64_t d = 0; d < c.dim; d++) c.key(pair, position, d) = codes[d];
    quantize(value, c.dim, c.value(pair, position), c.value_scale + scale);
}

// The new token's keys and values join the cache, and its queries get their positions.
template <class T>
static void take_in(const Model& m, const Cache<T>& cache, int64_t b, int64_t position, float* token) {
    const int64_t dim = m.head_dim, half = dim / 2;
    const float *cos = m.cos + position * half, *sin = m.sin + position * half;
    const float scale = 1 / std::sqrt(float(dim));
    for (int64_t h = 0; h < m.heads; h++) {
        float* query = token + h * dim;
        rotate(query, cos, sin, half);
        for (int64_t d = 0; d < dim; d++) query[d] *= scale;
    }
    for (int64_t h = 0; h < m.kv_heads; h++) {
        float* key = token + (m.heads + h) * dim;
        rotate(key, cos, sin, half);
        write(cache, b * m.kv_heads + h, position, key, key + m.kv_heads * dim);
    }
}

template <class T>
static void attention(const Model& m, const Cache<T>& cache, float* qkv, int64_t position, float* out,
                      int threads) {
    const int64_t dim = m.head_dim, group = m.heads / m.kv_heads, length = position + 1;
    const int64_t row = (m.heads + 2 * m.kv_heads) * dim, pairs = m.batch * m.kv_heads;
    for (int64_t b = 0; b < m.batch; b++) take_in(m, cache, b, position, qkv + b * row);
    const int64_t chunks = (length + CHUNK - 1) / CHUNK, part = dim + 2;
    static thread_local std::vector<float> parts_of_this_thread;
    parts_of_this_thread.resize(pairs * chunks * group * part);  // [pair][chunk][head of the group]
    float* parts = parts_of_this_thread.data();                  // one name for all threads below
    const bool worth_it = m.batch * m.heads * length > 512;
#pragma omp parallel for num_threads(threads) if (worth_it) schedule(static)
    for (int64_t task = 0; task < pairs * chunks; task++) {
        const int64_t pair = task / chunks, first = task % chunks * CHUNK;
        const Chunk<T> chunk = cache.chunk(pair, first, std::min(CHUNK, length - first));
        const float* query = qkv + pair / m.kv_heads * row + pair % m.kv_heads * group * dim;
        float* to = parts + task * group * part;
        for (int64_t h = 0, taken; h < group; h += taken, query += taken * dim, to += taken * part) {
            taken = std::min<int64_t>(4, group - h);
            if (taken == 4) attend_chunk<4>(query, chunk, dim, to);
            else if (taken == 3) attend_chunk<3>(query, chunk, dim, to);
            else if (taken == 2) attend_chunk<2>(query, chunk, dim, to);
            else attend_chunk<1>(query, chunk, dim, to);
        }
    }
    for (int64_t head = 0; head < pairs * group; head++)
        merge(parts + (head / group * chunks * group + head % group) * part, chunks, group * part,
              dim, out + head * dim);
}

static void attention(const Model& m, int64_t layer, float* qkv, int64_t position, float* out,
                      int threads) {
    if (m.key_scale) attention(m, Cache<int8_t>(m, layer), qkv, position, out, threads);
    else attention(m, Cache<uint16_t>(m, layer), qkv, position, out, threads);
}

static void step(const Model& m, const int64_t* tokens, int64_t position, float* logits,
                 int threads) {
    const int64_t B = m.batch, C = m.width, F = m.inner, Q = m.heads * m.head_dim;
    std::vector<float> x(B * C), normed(B * C), mixed(B * Q), gate_up(B * 2 * F), hidden(B * F);
    std::vector<float> qkv(B * (Q + 2 * m.kv_heads * m.head_dim));
    auto norm_all = [&](const float* weight) {
#pragma omp parallel for num_threads(threads) if (B > 1) schedule(static)
        for (int64_t b = 0; b < B; b++)
            rms_norm(&x[b * C], weight, C, m.eps, &normed[b * C]);
    };
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < C; i++) x[b * C + i] = from_bf16(m.embedding[tokens[b] * C + i]);
    for (int64_t l = 0; l < m.layer_count; l++) {
        const Layer& layer = m.layers[l];
        norm_all(layer.input_norm);
        linear(normed.data(), B, layer.qkv, qkv.data(), false, threads);
        attention(m, l, qkv.data(), position, mixed.data(), threads);
        linear(mixed.data(), B, layer.o, x.data(), true, threads);  // added to the residual
        norm_all(layer.post_attention_norm);
        linear(normed.data(), B, layer.gate_up, gate_up.data(), false, threads);
#pragma omp parallel for num_threads(threads) if (B > 1) schedule(static)
        for (int64_t b = 0; b < B; b++) {
            const float *gate = &gate_up[b * 2 * F], *up = gate + F;
            float* out = &hidden[b * F];
#pragma omp simd
            for (int64_t i = 0; i < F; i++) out[i] = gate[i] / (1 + fast_exp(-gate[i])) * up[i];
        }
        linear(hidden.data(), B, layer.down, x.data(), true, threads);
    }
    norm_all(m.norm);
    linear(normed.data(), B, m.head, logits, false, threads);
}

// ---- the ceiling of a step: reading memory, and nothing else -----------------------------------------

typedef uint64_t Line __attribute__((vector_size(64), may_alias));  // of a cache

// The sum of `count` lines, read in STREAMS places at once: the more, the more pages are underway.
template <int STREAMS>
static uint64_t sum_lines(const Line* lines, int64_t count) {
    const int64_t each = count / STREAMS;
    Line sum[STREAMS] = {};
    for (int64_t i = 0; i < each; i++)
#pragma GCC unroll 8
        for (int s = 0; s < STREAMS; s++) sum[s] += lines[s * each + i];
    for (int64_t i = STREAMS * each; i < count; i++) sum[0] += lines[i];
    uint64_t total = 0;
    for (const Line& line : sum)
        for (int i = 0; i < 8; i++) total += line[i];
    return total;
}

// ---- what Python calls -------------------------------------------------------------------------

#define STRUCT(type) #type " " + std::to_string(sizeof(type))
#define FIELD(type, name)                                         \
    +" " #name " " + std::to_string(offsetof(type, name)) + "+" + \
        std::to_string(sizeof(type::name))

extern "C" {

const char* kernel_name() { return NAME; }

// Does a product with weights in bf16 use an instruction for pairs, and round activations to bf16?
int has_bf16_dot() { return has_dot2(); }

int64_t keys_in_a_block() { return KEYS; }

// The structs' sizes, and where each field begins and how long it is, in bytes. Python describes the structs a second time, and compares.
const char* struct_layout() {
    static const std::string layout =
        STRUCT(Linear) FIELD(Linear, weights) FIELD(Linear, scale) FIELD(Linear, bias)
        FIELD(Linear, outputs) FIELD(Linear, inputs) FIELD(Linear, planes) + "\n" +
        STRUCT(Layer) FIELD(Layer, input_norm) FIELD(Layer, qkv) FIELD(Layer, o)
        FIELD(Layer, post_attention_norm) FIELD(Layer, gate_up) FIELD(Layer, down) + "\n" +
        STRUCT(Model) FIELD(Model, embedding) FIELD(Model, layers) FIELD(Model, norm)
        FIELD(Model, head) FIELD(Model, cos) FIELD(Model, sin) FIELD(Model, keys) FIELD(Model, values)
        FIELD(Model, key_scale) FIELD(Model, value_scale)
        FIELD(Model, layer_count) FIELD(Model, width) FIELD(Model, inner) FIELD(Model, heads)
        FIELD(Model, kv_heads) FIELD(Model, head_dim) FIELD(Model, context) FIELD(Model, batch)
        FIELD(Model, eps);
    return layout.c_str();
}

void int8_linear_bf16(const uint16_t* x, int64_t tokens, const Linear* layer, uint16_t* y,
                      int threads) {
    linear(x, tokens, *layer, y, false, threads);
}

void int8_linear_fp32(const float* x, int64_t tokens, const Linear* layer, float* y, int threads) {
    linear(x, tokens, *layer, y, false, threads);
}

void decode_attention(const Model* model, int64_t layer, float* qkv, int64_t position, float* out,
                      int threads) {
    attention(*model, layer, qkv, position, out, threads);
}

// The sum of `lines` x 8 numbers, modulo 2^64. `lines` lie at a multiple of 64 bytes.
uint64_t sum_memory(const void* memory, int64_t lines, int streams, int threads) {
    uint64_t sum = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : sum)
    for (int64_t t = 0; t < threads; t++) {
        const int64_t first = lines * t / threads, count = lines * (t + 1) / threads - first;
        const Line* part = (const Line*)memory + first;
        sum += streams == 8   ? sum_lines<8>(part, count)
               : streams == 4 ? sum_lines<4>(part, count)
               : streams == 2 ? sum_lines<2>(part, count)
                              : sum_lines<1>(part, count);
    }
    return sum;
}

void llama_step(const Model* model, const int64_t* tokens, int64_t position, float* logits,
                int threads) {
    step(*model, tokens, position, logits, threads);
}
}
