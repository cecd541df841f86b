// Classify images with a package, through OpenVINO's C++ API:
//
//     classify deploy_weights/FOLDER image.ppm ...
//
// Images are binary PPM (P6), which any image tool writes; a program of its own would call its JPEG decoder instead.
// The package must take pixels (package.json: "input_dtype": "uint8"), as packages do unless they were built with
// `pixel_input: false`: the model normalises by itself, so resizing and cropping are all that is left to do here.
// Resizing is Pillow's antialiased bilinear filter, rows first, so that answers are those of the Python runner. (With
// images that lose more height than width, recent Pillow begins with the columns: some pixels differ by one of 255.)
// The score it prints is the model's own output. What that is, package.json says ("scores"): of logits and log_softmax a
// softmax makes probabilities; softmax and sigmoid are to be taken as they are.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <numeric>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

namespace fs = std::filesystem;

namespace {

// Interleaved RGB, 8 bits a channel.
struct Image {
    int height = 0;
    int width = 0;
    std::vector<std::uint8_t> pixels;
};

struct Preprocess {
    bool shorter_side = false;  // else the image is stretched
    int resize_height = 0;
    int resize_width = 0;
    int crop_height = 0;
    int crop_width = 0;
};

std::string read_text(const fs::path& path) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) {
        throw std::runtime_error(path.string() + ": cannot be read");
    }
    std::ostringstream content;
    content << stream.rdbuf();
    return content.str();
}

// The value of a key of a flat JSON file of ours; a program of its own would use its JSON library.
std::string json_value(const std::string& text, const std::string& key) {
    std::smatch found;
    const std::regex pattern("\"" + key + "\"\\s*:\\s*\"?([^\",\\s}]+)");
    if (!std::regex_search(text, found, pattern)) {
        throw std::runtime_error("no key " + key);
    }
    return found[1];
}

Preprocess read_preprocess(const fs::path& path) {
    const std::string text = read_text(path);
    if (json_value(text, "ResizeType") != "BILINEAR_PILLOW" || json_value(text, "ColorCvtCode") != "NO_CHANGE") {
        throw std::runtime_error(path.string() + ": this example knows BILINEAR_PILLOW and RGB only");
    }
    Preprocess spec;
    spec.shorter_side = text.find("\"SHORTER_SIDE\"") != std::string::npos;
    spec.resize_height = std::stoi(json_value(text, "ResizeHeight"));
    spec.resize_width = std::stoi(json_value(text, "ResizeWidth"));
    spec.crop_height = std::stoi(json_value(text, "OimageHeight"));
    spec.crop_width = std::stoi(json_value(text, "OimageWidth"));
    return spec;
}

std::vector<std::string> read_labels(const fs::path& path) {
    std::ifstream stream(path);
    std::vector<std::string> labels;
    for (std::string line; std::getline(stream, line);) {
        labels.push_back(line.substr(line.find('\t') + 1));  // id, tab, name
    }
    return labels;
}

Image read_ppm(const fs::path& path) {
    std::ifstream stream(path, std::ios::binary);
    std::string magic;
    Image image;
    int most = 0;
    stream >> magic >> image.width >> image.height >> most;
    stream.get();  // the one whitespace before the pixels
    const bool plausible = image.width > 0 && image.height > 0 && image.width < 65536 && image.height < 65536;
    if (!stream || magic != "P6" || most != 255 || !plausible) {
        throw std::runtime_error(path.string() + ": no binary PPM of 8 bits (P6, 255)");
    }
    image.pixels.resize(static_cast<std::size_t>(image.width) * image.height * 3);
    stream.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!stream) {
        throw std::runtime_error(path.string() + ": cut short");
    }
    return image;
}

// Which input pixels make one output pixel, and their weights in fixed point, as Pillow's Resample.c has them.
struct Taps {
    int first = 0;
    std::vector<std::int32_t> weights;
};

constexpr int kPrecisionBits = 32 - 8 - 2;

std::vector<Taps> bilinear_taps(int from, int to) {
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

std::uint8_t clip8(std::int32_t value) {
    return static_cast<std::uint8_t>(std::clamp(value >> kPrecisionBits, 0, 255));
}

Image resize(const Image& image, int height, int width) {
    if (height == image.height && width == image.width) {
        return image;
    }
    const std::int32_t half = 1 << (kPrecisionBits - 1);
    Image wide{image.height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(image.height) * width * 3)};
    const auto columns = bilinear_taps(image.width, width);
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
    const auto rows = bilinear_taps(image.height, height);
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

// Resize, crop at the centre, and write planes [3, H, W].
void prepare(const Preprocess& spec, const Image& image, std::uint8_t* planes) {
    int height = spec.resize_height;
    int width = spec.resize_width;
    if (spec.shorter_side && image.height <= image.width) {
        width = static_cast<int>(static_cast<double>(height) * image.width / image.height);
    } else if (spec.shorter_side) {
        height = static_cast<int>(static_cast<double>(width) * image.height / image.width);
    }
    const Image resized = resize(image, height, width);
    if (spec.crop_height > height || spec.crop_width > width) {
        throw std::runtime_error("an image is smaller than the crop");
    }
    // Half of an odd rest goes to the even neighbour, as torchvision rounds.
    const int top = static_cast<int>(std::nearbyint((height - spec.crop_height) / 2.0));
    const int left = static_cast<int>(std::nearbyint((width - spec.crop_width) / 2.0));
    for (int channel = 0; channel < 3; ++channel) {
        for (int y = 0; y < spec.crop_height; ++y) {
            for (int x = 0; x < spec.crop_width; ++x) {
                const std::size_t at = (static_cast<std::size_t>(top + y) * width + left + x) * 3 + channel;
                *planes++ = resized.pixels[at];
            }
        }
    }
}

int run(const std::vector<std::string>& arguments) {
    const fs::path folder(arguments.at(0));
    const std::string facts = read_text(folder / "package.json");
    if (json_value(facts, "input_dtype") != "uint8") {
        throw std::runtime_error(folder.string() + ": takes normalised float32; build it with pixel_input: true");
    }
    const Preprocess spec = read_preprocess(folder / "preprocess.json");
    const std::vector<std::string> labels = read_labels(folder / "classes.tsv");
    const std::size_t count = arguments.size() - 1;

    ov::Core core;
    auto model = core.read_model((folder / (json_value(facts, "name") + ".onnx")).string());
    model->reshape(ov::PartialShape{static_cast<std::int64_t>(count), 3, spec.crop_height, spec.crop_width});
    // Float parts in float32, as in the Python runner, also on CPUs that would take bfloat16.
    auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = compiled.create_infer_request();

    ov::Tensor input = request.get_input_tensor();
    for (std::size_t index = 0; index < count; ++index) {
        const std::size_t size = static_cast<std::size_t>(3) * spec.crop_height * spec.crop_width;
        prepare(spec, read_ppm(arguments[index + 1]), input.data<std::uint8_t>() + index * size);
    }
    request.infer();

    const ov::Tensor output = request.get_output_tensor();
    const std::size_t classes = output.get_shape().at(1);
    for (std::size_t index = 0; index < count; ++index) {
        const float* scores = output.data<float>() + index * classes;
        const auto best = static_cast<std::size_t>(std::max_element(scores, scores + classes) - scores);
        const std::string label = best < labels.size() ? labels[best] : "?";
        std::cout << arguments[index + 1] << '\t' << best << '\t' << std::setprecision(9) << scores[best] << '\t'
                  << label << '\n';
    }
    return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "usage: classify PACKAGE_FOLDER IMAGE.ppm ...\n";
        return 2;
    }
    try {
        return run(std::vector<std::string>(argv + 1, argv + argc));
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
