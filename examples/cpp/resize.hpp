// The two bilinear filters of build files, with the arithmetic of the libraries they come from: answers are then those
// of the Python runner.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "images.hpp"

// Which input pixels make one output pixel, and their weights in fixed point, as Pillow's Resample.c has them.
struct Taps {
    int first = 0;
    std::vector<std::int32_t> weights;
};

constexpr int kPrecisionBits = 32 - 8 - 2;

inline std::vector<Taps> pillow_taps(int from, int to) {
    const double scale = static_cast<double>(from) / to;
    const double filter_scale = std::max(scale, 1.0);
    const double support = filter_scale;  // of the triangle, 1 in its own units
    const double inverse = 1.0 / filter_scale;
    std::vector<Taps> all(to);
    for (int out = 0; out < to; ++out) {
        const double center = (out + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(center - support + 0.5));
        const int last = std::min(from, static_cast<int>(center + support + 0.5));
        std::vector<double> weights(last - first);
        for (int at = first; at < last; ++at) {
            const double distance = std::abs((at - center + 0.5) * inverse);
            weights[at - first] = distance < 1.0 ? 1.0 - distance : 0.0;
        }
        const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        all[out].first = first;
        for (const double weight : weights) {
            const double normal = sum != 0.0 ? weight / sum : weight;
            all[out].weights.push_back(static_cast<std::int32_t>(0.5 + normal * (1 << kPrecisionBits)));
        }
    }
    return all;
}

inline std::uint8_t clip8(std::int32_t value) {
    return static_cast<std::uint8_t>(std::clamp(value >> kPrecisionBits, 0, 255));
}

// Pillow's antialiased bilinear filter, columns first, then rows.
inline Image resize_pillow(const Image& image, int height, int width) {
    const std::int32_t half = 1 << (kPrecisionBits - 1);
    Image wide{image.height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(image.height) * width * 3)};
    const auto columns = pillow_taps(image.width, width);
    for (int y = 0; y < image.height; ++y) {
        for (int x = 0; x < width; ++x) {
            for (int channel = 0; channel < 3; ++channel) {
                std::int32_t sum = half;
                for (std::size_t tap = 0; tap < columns[x].weights.size(); ++tap) {
                    const std::size_t at = static_cast<std::size_t>(y) * image.width + columns[x].first + tap;
                    sum += image.pixels[at * 3 + channel] * columns[x].weights[tap];
                }
                wide.pixels[(static_cast<std::size_t>(y) * width + x) * 3 + channel] = clip8(sum);
            }
        }
    }
    Image out{height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(height) * width * 3)};
    const auto rows = pillow_taps(image.height, height);
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width * 3; ++x) {
            std::int32_t sum = half;
            for (std::size_t tap = 0; tap < rows[y].weights.size(); ++tap) {
                sum += wide.pixels[(rows[y].first + tap) * width * 3 + x] * rows[y].weights[tap];
            }
            out.pixels[static_cast<std::size_t>(y) * width * 3 + x] = clip8(sum);
        }
    }
    return out;
}

// The two input pixels of one output pixel and their weights of 11 bits, as OpenCV's resize.cpp has them.
struct Pair {
    int lower = 0;
    int upper = 0;
    std::int32_t lower_weight = 0;
    std::int32_t upper_weight = 0;
};

inline std::vector<Pair> opencv_pairs(int from, int to) {
    std::vector<Pair> all(to);
    for (int out = 0; out < to; ++out) {
        const auto centre = static_cast<float>((out + 0.5) * (static_cast<double>(from) / to) - 0.5);
        const auto lower = static_cast<int>(std::floor(centre));
        const float fraction = centre - static_cast<float>(lower);
        all[out] = {std::clamp(lower, 0, from - 1), std::clamp(lower + 1, 0, from - 1),
                    static_cast<std::int32_t>(std::nearbyint((1.0F - fraction) * 2048.0F)),
                    static_cast<std::int32_t>(std::nearbyint(fraction * 2048.0F))};
    }
    return all;
}

// OpenCV's INTER_LINEAR of 8-bit images: not antialiased, with its truncating shifts.
inline Image resize_opencv(const Image& image, int height, int width) {
    const auto rows = opencv_pairs(image.height, height);
    const auto columns = opencv_pairs(image.width, width);
    Image out{height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(height) * width * 3)};
    const auto part = [&](int y, std::int32_t weight, const Pair& column, int channel) {
        const std::size_t line = static_cast<std::size_t>(y) * image.width;
        const std::int32_t mixed = image.pixels[(line + column.lower) * 3 + channel] * column.lower_weight +
                                   image.pixels[(line + column.upper) * 3 + channel] * column.upper_weight;
        return ((mixed >> 4) * weight) >> 16;
    };
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
            for (int channel = 0; channel < 3; ++channel) {
                const std::int32_t sum = part(rows[y].lower, rows[y].lower_weight, columns[x], channel) +
                                         part(rows[y].upper, rows[y].upper_weight, columns[x], channel);
                out.pixels[(static_cast<std::size_t>(y) * width + x) * 3 + channel] =
                    static_cast<std::uint8_t>((sum + 2) >> 2);
            }
        }
    }
    return out;
}
