// Image files to interleaved RGB: JPEG by libjpeg(-turbo), PNG by libpng, binary PPM (P6). The file's first bytes
// decide, not its name. Pixels are those that Pillow's `convert("RGB")` gives: alpha is dropped, 16 bits become the
// upper 8. An orientation in EXIF is for orientation.hpp.

#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <png.h>

// Interleaved RGB, 8 bits a channel.
struct Image {
    int height = 0;
    int width = 0;
    std::vector<std::uint8_t> pixels;
};

constexpr int kMostPixelsASide = 65535;
constexpr std::size_t kMostPixels = 89478485;  // Pillow's limit: beyond it a small file may fill the memory

inline std::string read_file(const std::filesystem::path& path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) {
        throw std::runtime_error(path.string() + ": cannot be read");
    }
    std::ostringstream content;
    content << stream.rdbuf();
    return content.str();
}

// Gives an image its size; false where it is empty or larger than is taken here.
inline bool make_room(Image& image, std::size_t height, std::size_t width) {
    if (height == 0 || width == 0 || height > kMostPixelsASide || width > kMostPixelsASide ||
        height * width > kMostPixels) {
        return false;
    }
    image = {static_cast<int>(height), static_cast<int>(width), std::vector<std::uint8_t>(height * width * 3)};
    return true;
}

inline Image decode_ppm(const std::string& name, const std::string& bytes) {
    std::istringstream stream(bytes);
    std::string magic;
    std::size_t width = 0, height = 0;
    int most = 0;
    stream >> magic >> width >> height >> most;
    stream.get();  // the one whitespace before the pixels
    if (!stream || most != 255) {
        throw std::runtime_error(name + ": not a binary PPM of 8 bits (P6, 255)");
    }
    Image image;
    if (!make_room(image, height, width)) {
        throw std::runtime_error(name + ": " + std::to_string(width) + " x " + std::to_string(height) + " pixels");
    }
    stream.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!stream) {
        throw std::runtime_error(name + ": cut short");
    }
    return image;
}

// libjpeg reports errors by a call that must not return; warnings (a file that is cut short) count as errors here.
struct JpegErrors {
    jpeg_error_mgr manager;
    std::jmp_buf jump;
    char text[JMSG_LENGTH_MAX];
};

inline void leave_jpeg(j_common_ptr info) {
    auto* errors = reinterpret_cast<JpegErrors*>(info->err);
    (*info->err->format_message)(info, errors->text);
    std::longjmp(errors->jump, 1);
}

inline void leave_jpeg_at_warning(j_common_ptr info, int level) {
    if (level < 0) {
        leave_jpeg(info);
    }
}

// Fills `image`; false: `errors.text` says why not. A jump back skips no destructor: there is none in here.
inline bool read_jpeg(const std::string& bytes, Image& image, JpegErrors& errors) {
    jpeg_decompress_struct info{};
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = leave_jpeg;
    errors.manager.emit_message = leave_jpeg_at_warning;
    if (setjmp(errors.jump) != 0) {
        jpeg_destroy_decompress(&info);
        return false;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;  // of four channels (CMYK) there is no conversion: libjpeg says so
    jpeg_start_decompress(&info);
    if (!make_room(image, info.output_height, info.output_width)) {
        std::snprintf(errors.text, sizeof errors.text, "%u x %u pixels", info.output_width, info.output_height);
        jpeg_destroy_decompress(&info);
        return false;
    }
    while (info.output_scanline < info.output_height) {
        JSAMPROW row = image.pixels.data() + static_cast<std::size_t>(info.output_scanline) * info.output_width * 3;
        jpeg_read_scanlines(&info, &row, 1);
    }
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    return true;
}

inline Image decode_jpeg(const std::string& name, const std::string& bytes) {
    Image image;
    JpegErrors errors{};
    if (!read_jpeg(bytes, image, errors)) {
        throw std::runtime_error(name + ": " + errors.text);
    }
    return image;
}

struct PngSource {
    const std::string& bytes;
    std::size_t at = 0;
};

inline void read_png_bytes(png_structp png, png_bytep out, png_size_t count) {
    auto* source = static_cast<PngSource*>(png_get_io_ptr(png));
    if (count > source->bytes.size() - source->at) {
        png_error(png, "cut short");
    }
    std::memcpy(out, source->bytes.data() + source->at, count);
    source->at += count;
}

struct PngFault {
    std::jmp_buf jump;
    char text[200];
};

inline void leave_png(png_structp png, png_const_charp text) {
    auto* fault = static_cast<PngFault*>(png_get_error_ptr(png));
    std::snprintf(fault->text, sizeof fault->text, "%s", text);
    std::longjmp(fault->jump, 1);
}

inline void ignore_png_warning(png_structp, png_const_charp) {}

// As `read_jpeg`.
inline bool read_png(PngSource& source, Image& image, PngFault& fault) {
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &fault, leave_png, ignore_png_warning);
    png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
    if (info == nullptr) {
        png_destroy_read_struct(&png, nullptr, nullptr);
        std::snprintf(fault.text, sizeof fault.text, "libpng cannot start");
        return false;
    }
    if (setjmp(fault.jump) != 0) {
        png_destroy_read_struct(&png, &info, nullptr);
        return false;
    }
    png_set_user_limits(png, kMostPixelsASide, kMostPixelsASide);
    png_set_read_fn(png, &source, read_png_bytes);
    png_read_info(png, info);
    png_set_expand(png);    // palettes and 1, 2, 4 bits to 8; a transparent colour to alpha
    png_set_strip_16(png);  // to the upper 8 bits
    png_set_strip_alpha(png);
    png_set_gray_to_rgb(png);
    const int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    if (!make_room(image, png_get_image_height(png, info), png_get_image_width(png, info)) ||
        png_get_rowbytes(png, info) != static_cast<std::size_t>(image.width) * 3) {
        png_error(png, "more pixels, or other channels, than are taken here");
    }
    for (int pass = 0; pass < passes; ++pass) {
        for (int row = 0; row < image.height; ++row) {
            png_read_row(png, image.pixels.data() + static_cast<std::size_t>(row) * image.width * 3, nullptr);
        }
    }
    png_read_end(png, nullptr);
    png_destroy_read_struct(&png, &info, nullptr);
    return true;
}

inline Image decode_png(const std::string& name, const std::string& bytes) {
    Image image;
    PngSource source{bytes};
    PngFault fault{};
    if (!read_png(source, image, fault)) {
        throw std::runtime_error(name + ": " + fault.text);
    }
    return image;
}

inline Image decode(const std::string& name, const std::string& bytes) {
    if (bytes.rfind("P6", 0) == 0) {
        return decode_ppm(name, bytes);
    }
    if (bytes.rfind("\xff\xd8", 0) == 0) {
        return decode_jpeg(name, bytes);
    }
    if (bytes.rfind("\x89PNG\r\n", 0) == 0) {
        return decode_png(name, bytes);
    }
    throw std::runtime_error(name + ": not a JPEG, PNG or binary PPM (P6) image");
}
