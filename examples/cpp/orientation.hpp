// The orientation that EXIF gives a JPEG (its APP1 segment) or PNG (its eXIf chunk), and the image turned by it, as
// OpenCV's imread and Pillow's exif_transpose do. An orientation in XMP is not looked at.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "images.hpp"

inline std::uint32_t read_number(const std::string& bytes, std::size_t at, std::size_t size, bool little) {
    std::uint32_t value = 0;
    for (std::size_t index = 0; index < size; ++index) {
        const std::size_t place = little ? at + size - 1 - index : at + index;
        value = value << 8 | static_cast<std::uint8_t>(bytes[place]);
    }
    return value;
}

// The orientation in a block of EXIF, 1 to 8; 1, as it is, where there is none or the block is damaged.
inline int orientation_in(const std::string& exif) {
    constexpr std::size_t kHead = 8, kEntry = 12, kOrientation = 0x0112, kShort = 3;
    if (exif.size() < kHead || (exif.compare(0, 4, std::string("II*\0", 4)) != 0 &&
                                exif.compare(0, 4, std::string("MM\0*", 4)) != 0)) {
        return 1;
    }
    const bool little = exif[0] == 'I';
    const std::size_t table = read_number(exif, 4, 4, little);
    if (table > exif.size() - 2) {
        return 1;
    }
    const std::size_t count = read_number(exif, table, 2, little);
    for (std::size_t entry = table + 2; count > (entry - table - 2) / kEntry && entry + kEntry <= exif.size();
         entry += kEntry) {
        if (read_number(exif, entry, 2, little) == kOrientation && read_number(exif, entry + 2, 2, little) == kShort) {
            const std::uint32_t value = read_number(exif, entry + 8, 2, little);
            return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
        }
    }
    return 1;
}

inline int orientation_of_jpeg(const std::string& bytes) {
    constexpr std::uint8_t kScan = 0xda, kApp1 = 0xe1;
    const std::string mark("Exif\0\0", 6);
    for (std::size_t at = 2; at + 4 <= bytes.size() && static_cast<std::uint8_t>(bytes[at]) == 0xff;) {
        const auto kind = static_cast<std::uint8_t>(bytes[at + 1]);
        if (kind == 0xff) {  // a fill byte
            ++at;
            continue;
        }
        const std::size_t length = read_number(bytes, at + 2, 2, false);
        if (kind == kScan || length < 2 || at + 2 + length > bytes.size()) {
            break;
        }
        if (kind == kApp1 && bytes.compare(at + 4, mark.size(), mark) == 0 && length >= 2 + mark.size()) {
            return orientation_in(bytes.substr(at + 4 + mark.size(), length - 2 - mark.size()));
        }
        at += 2 + length;
    }
    return 1;
}

inline int orientation_of_png(const std::string& bytes) {
    constexpr std::size_t kSignature = 8, kAround = 12;  // length, kind and checksum of a chunk
    for (std::size_t at = kSignature; at + kAround <= bytes.size();) {
        const std::size_t length = read_number(bytes, at, 4, false);
        if (length > bytes.size() - at - kAround) {
            break;
        }
        if (bytes.compare(at + 4, 4, "eXIf") == 0) {
            return orientation_in(bytes.substr(at + 8, length));
        }
        at += kAround + length;
    }
    return 1;
}

inline int orientation_of(const std::string& bytes) {
    if (bytes.rfind("\xff\xd8", 0) == 0) {
        return orientation_of_jpeg(bytes);
    }
    return bytes.rfind("\x89PNG\r\n", 0) == 0 ? orientation_of_png(bytes) : 1;
}

inline Image turned(const Image& image, int orientation) {
    if (orientation == 1) {
        return image;
    }
    const bool transposes = orientation >= 5;
    const bool flips_rows = orientation == 3 || orientation == 4 || orientation >= 7;
    const bool flips_columns = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
    Image out{transposes ? image.width : image.height, transposes ? image.height : image.width,
              std::vector<std::uint8_t>(image.pixels.size())};
    for (int y = 0; y < out.height; ++y) {
        for (int x = 0; x < out.width; ++x) {
            const int row = flips_rows ? out.height - 1 - y : y;
            const int column = flips_columns ? out.width - 1 - x : x;
            const int from_row = transposes ? column : row;
            const int from_column = transposes ? row : column;
            const std::size_t from = (static_cast<std::size_t>(from_row) * image.width + from_column) * 3;
            const std::size_t to = (static_cast<std::size_t>(y) * out.width + x) * 3;
            for (std::size_t channel = 0; channel < 3; ++channel) {
                out.pixels[to + channel] = image.pixels[from + channel];
            }
        }
    }
    return out;
}
