// Classify images with a package, through OpenVINO's C++ API:
//
//     classify deploy_weights/FOLDER image.jpg ...
//
// Images are JPEG, PNG or binary PPM. The package must take pixels (package.json: "input_dtype": "uint8"), as packages
// do unless they were built with `pixel_input: false`: the model normalises, so that resizing and cropping are all that
// is left to do here. The filter is the package's own: Pillow's antialiased bilinear (torchvision, timm) or OpenCV's
// (PaddleClas). With images that lose more height than width, recent Pillow begins with the columns: some pixels then
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
#include "resize.hpp"

namespace fs = std::filesystem;

namespace {

enum class Filter { pillow, opencv };

struct Preprocess {
    Filter filter = Filter::pillow;
    bool bgr = false;
    bool shorter_side = false;  // else the image is stretched
    int resize_height = 0;
    int resize_width = 0;
    int crop_height = 0;
    int crop_width = 0;
};

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
    const std::string text = read_file(path);
    const std::string filter = json_value(text, "ResizeType");
    if (filter != "BILINEAR_PILLOW" && filter != "BILINEAR_CV") {
        throw std::runtime_error(path.string() + ": ResizeType " + filter +
                                 "; this example knows BILINEAR_PILLOW and BILINEAR_CV");
    }
    Preprocess spec;
    spec.filter = filter == "BILINEAR_CV" ? Filter::opencv : Filter::pillow;
    spec.bgr = json_value(text, "ColorCvtCode") != "NO_CHANGE";
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

Image resize(const Preprocess& spec, const Image& image, int height, int width) {
    if (height == image.height && width == image.width) {
        return image;
    }
    return spec.filter == Filter::opencv ? resize_opencv(image, height, width) : resize_pillow(image, height, width);
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
    const Image resized = resize(spec, image, height, width);
    if (spec.crop_height > height || spec.crop_width > width) {
        throw std::runtime_error("an image is smaller than the crop");
    }
    // Half of an odd rest goes to the even neighbour, as torchvision rounds.
    const int top = static_cast<int>(std::nearbyint((height - spec.crop_height) / 2.0));
    const int left = static_cast<int>(std::nearbyint((width - spec.crop_width) / 2.0));
    for (int channel = 0; channel < 3; ++channel) {
        for (int y = 0; y < spec.crop_height; ++y) {
            for (int x = 0; x < spec.crop_width; ++x) {
                const std::size_t at = (static_cast<std::size_t>(top + y) * width + left + x) * 3 + (spec.bgr ? 2 - channel : channel);
                *planes++ = resized.pixels[at];
            }
        }
    }
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
        prepare(spec, read_image(arguments[index + 1]), input.data<std::uint8_t>() + index * size);
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
