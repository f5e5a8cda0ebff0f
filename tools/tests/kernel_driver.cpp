// Runs a function of the kernel on numbers from a file: for another processor, in an emulator,
// where Python cannot load the library. kernel_driver FUNCTION IN OUT; test_neon.py writes IN.

#include "kernel.cpp"

#include <cstdio>
#include <cstdlib>

template <class T>
static std::vector<T> read(FILE* file, int64_t count) {
    std::vector<T> values(count);
    if (std::fread(values.data(), sizeof(T), count, file) != size_t(count)) std::exit(2);
    return values;
}

int main(int, char** argv) {
    FILE *in = std::fopen(argv[2], "rb"), *out = std::fopen(argv[3], "wb");
    const auto n = read<int64_t>(in, 6);
    std::vector<float> result;
    if (std::string(argv[1]) == "linear") {  // tokens, outputs, inputs, planes, bytes, scales
        const auto x = read<float>(in, n[0] * n[2]);
        const auto weights = read<uint8_t>(in, n[4]);
        const auto scale = read<uint16_t>(in, n[5]);
        const Linear layer{weights.data(), n[3] ? scale.data() : nullptr, nullptr, n[1], n[2], n[3]};
        result.resize(n[0] * n[1]);
        int8_linear_fp32(x.data(), n[0], &layer, result.data(), 1);
    } else {  // heads, key-value heads, head dimension, tokens, blocks of keys, numbers in 8 bits
        Model m{};
        m.heads = n[0], m.kv_heads = n[1], m.head_dim = n[2], m.context = n[3], m.batch = 1;
        auto qkv = read<float>(in, (n[0] + 2 * n[1]) * n[2]);
        const int64_t size = n[5] ? 1 : 2, scales = n[5] ? n[1] * n[4] * KEYS : 0;
        auto keys = read<uint8_t>(in, size * n[1] * n[4] * KEYS * n[2]);
        auto values = read<uint8_t>(in, size * n[1] * n[3] * n[2]);
        auto key_scale = read<float>(in, scales), value_scale = read<float>(in, scales);
        const std::vector<float> cos(n[3] * n[2], 1.0f), sin(n[3] * n[2], 0.0f);
        m.keys = keys.data(), m.values = values.data(), m.cos = cos.data(), m.sin = sin.data();
        if (scales) m.key_scale = key_scale.data(), m.value_scale = value_scale.data();
        result.resize(n[0] * n[2]);
        decode_attention(&m, 0, qkv.data(), n[3] - 1, result.data(), 1);
    }
    std::fwrite(result.data(), sizeof(float), result.size(), out);
    return std::fclose(out);
}
