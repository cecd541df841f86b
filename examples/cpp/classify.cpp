// Classify images with a package, through OpenVINO's C++ API:
//
//     classify deploy_weights/FOLDER image.jpg ...
//
// Images are JPEG, PNG or binary PPM. The package must take pixels (package.json: "input_dtype": "uint8"), as packages
// do unless they were built with `pixel_input: false`: the model normalises, so that resizing and cropping are all that
// is left to do here. The filter is the package's own: Pillow's antialiased bilinear (torchvision, timm) or OpenCV's
// (PaddleClas). So are the arithmetic of sizes and corners, and whether images are turned by EXIF (preprocess.json:
// "PreprocessAs"). With images that lose more height than width, recent Pillow begins with the columns: some pixels then
// differ by one of 255 from the Python runner's.
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
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

#include "images.hpp"
#include "orientation.hpp"
#include "resize.hpp"

namespace fs = std::filesystem;

namespace {

enum class Filter { pillow, opencv };
enum class As { torchvision, paddleclas, transformers };
enum class Mode { stretch, shorter_side, none };

struct Preprocess {
    Filter filter = Filter::pillow;
    As as = As::torchvision;
    Mode mode = Mode::stretch;
    bool bgr = false;
    int resize_height = 0;
    int resize_width = 0;
    int crop_height = 0;
    int crop_width = 0;
    int crop_top = 0;  // of a stretched image; others are cropped at the centre
    int crop_left = 0;
};

// The value of a key of a flat JSON file of ours; a program of its own would use its JSON library.
std::string json_value(const std::string& text, const std::string& key, const std::string& absent = "") {
    std::smatch found;
    const std::regex pattern("\"" + key + "\"\\s*:\\s*\"?([^\",\\s}]+)");
    if (std::regex_search(text, found, pattern)) {
        return found[1];
    }
    if (absent.empty()) {
        throw std::runtime_error("no key " + key);
    }
    return absent;
}

As read_as(const fs::path& path, const std::string& text) {
    const std::string as = json_value(text, "PreprocessAs", "torchvision");
    if (as == "torchvision") {
        return As::torchvision;
    }
    if (as == "paddleclas") {
        return As::paddleclas;
    }
    if (as == "transformers") {
        return As::transformers;
    }
    throw std::runtime_error(path.string() + ": PreprocessAs " + as +
                             "; this example knows torchvision, paddleclas and transformers");
}

Mode read_mode(const fs::path& path, const std::string& text) {
    const std::string mode = json_value(text, "ResizeMode", "STRETCH");
    if (mode != "STRETCH" && mode != "SHORTER_SIDE" && mode != "NONE") {
        throw std::runtime_error(path.string() + ": ResizeMode " + mode + " is not known to this example");
    }
    return mode == "STRETCH" ? Mode::stretch : mode == "NONE" ? Mode::none : Mode::shorter_side;
}

Preprocess read_preprocess(const fs::path& path) {
    const std::string text = read_file(path);
    const std::string filter = json_value(text, "ResizeType");
    if (filter != "BILINEAR_PILLOW" && filter != "BILINEAR_CV") {
        throw std::runtime_error(path.string() + ": ResizeType " + filter +
                                 "; this example knows BILINEAR_PILLOW and BILINEAR_CV");
    }
    Preprocess spec;
    spec.filter = filter == "BILINEAR_CV" ? Filter::opencv : Filter::pillow;
    spec.as = read_as(path, text);
    spec.mode = read_mode(path, text);
    spec.bgr = json_value(text, "ColorCvtCode") != "NO_CHANGE";
    if (spec.mode != Mode::none) {
        spec.resize_height = std::stoi(json_value(text, "ResizeHeight"));
        spec.resize_width = std::stoi(json_value(text, "ResizeWidth"));
    }
    if (spec.mode == Mode::stretch) {
        spec.crop_top = std::stoi(json_value(text, "CropY"));
        spec.crop_left = std::stoi(json_value(text, "CropX"));
    }
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

Image resize(const Preprocess& spec, const Image& image, int height, int width) {
    if (height == image.height && width == image.width) {
        return image;
    }
    return spec.filter == Filter::opencv ? resize_opencv(image, height, width) : resize_pillow(image, height, width);
}

struct Size {
    int height = 0;
    int width = 0;
};

// The size of an image after the resize.
Size resized(const Preprocess& spec, const Image& image) {
    if (spec.mode == Mode::none) {
        return {image.height, image.width};
    }
    if (spec.mode == Mode::stretch) {
        return {spec.resize_height, spec.resize_width};
    }
    const int side = spec.resize_height;
    if (spec.as == As::paddleclas) {  // rounds both sides, halves to even, in this order of operations
        const double percent = static_cast<double>(side) / std::min(image.height, image.width);
        return {static_cast<int>(std::nearbyint(image.height * percent)),
                static_cast<int>(std::nearbyint(image.width * percent))};
    }
    if (image.height <= image.width) {
        return {side, static_cast<int>(static_cast<double>(side) * image.width / image.height)};
    }
    return {static_cast<int>(static_cast<double>(side) * image.height / image.width), side};
}

// The first pixel of a crop at the centre that leaves `room` pixels over.
int centre(const Preprocess& spec, int room) {
    // torchvision gives half of an odd rest to the even neighbour; the others cut it off.
    return spec.as == As::torchvision ? static_cast<int>(std::nearbyint(room / 2.0)) : room / 2;
}

// Resize, crop, and write planes [3, H, W].
void prepare(const Preprocess& spec, const Image& image, std::uint8_t* planes) {
    const auto [height, width] = resized(spec, image);
    if (spec.crop_height > height || spec.crop_width > width) {
        throw std::runtime_error("an image is smaller than the crop");
    }
    const Image whole = resize(spec, image, height, width);
    const bool stretched = spec.mode == Mode::stretch;
    const int top = stretched ? spec.crop_top : centre(spec, height - spec.crop_height);
    const int left = stretched ? spec.crop_left : centre(spec, width - spec.crop_width);
    for (int channel = 0; channel < 3; ++channel) {
        for (int y = 0; y < spec.crop_height; ++y) {
            for (int x = 0; x < spec.crop_width; ++x) {
                const std::size_t at = (static_cast<std::size_t>(top + y) * width + left + x) * 3;
                *planes++ = whole.pixels[at + (spec.bgr ? 2 - channel : channel)];
            }
        }
    }
}

// Decoded, and turned by EXIF where the package's library does that.
Image read_image(const Preprocess& spec, const std::string& path) {
    const std::string bytes = read_file(path);
    const Image image = decode(path, bytes);
    return spec.as == As::torchvision ? image : turned(image, orientation_of(bytes));
}

int run(const std::vector<std::string>& arguments) {
    const fs::path folder(arguments.at(0));
    const std::string facts = read_file(folder / "package.json");
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
        prepare(spec, read_image(spec, arguments[index + 1]), input.data<std::uint8_t>() + index * size);
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
        std::cerr << "usage: classify PACKAGE_FOLDER IMAGE ...\n";
        return 2;
    }
    try {
        return run(std::vector<std::string>(argv + 1, argv + argc));
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
