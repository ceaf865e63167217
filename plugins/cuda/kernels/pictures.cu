// Pictures as a network wants them, in one pass: a region of each is resized, set on a ground, made numbers, and laid out.
//
// Resizing is what Pillow calls a resize with a box, and what the vision plugin does: a filter that is as wide as the pixels
// that a smaller picture leaves out; along columns first, then along rows, and a byte in between.

#define CHANNELS 3
#define BICUBIC 1
#define NHWC 1

// Of one picture; the host fills it in.
struct Job {
    long long offset;                       // of its first byte
    int width, height;                      // of the picture
    float left, top, across, down;          // of the region, in its pixels
    int to_left, to_top, to_across, to_down;  // where it comes to lie
};

// How a byte becomes a number: (byte * scale - mean) / std.
struct Numbers {
    float scale, mean[CHANNELS], std[CHANNELS];
    int place[CHANNELS];  // of a colour, in a pixel
    int fill;             // the ground
};

__device__ float weight(float distance, int filter) {
    float x = distance < 0.0f ? -distance : distance;
    if (filter == BICUBIC) {
        // Catmull-Rom.
        if (x < 1.0f) return (1.5f * x - 2.5f) * x * x + 1.0f;
        return x < 2.0f ? ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f : 0.0f;
    }
    return x < 1.0f ? 1.0f - x : 0.0f;
}

// The pixels along a side that make one of the result.
struct Window {
    float center, shrink;  // where it lies, and one over how many pixels become one
    int first, end;
    float sum;             // of their weights
};

__device__ Window window(float from, float length, int to, int at, int side, int filter) {
    Window w;
    float scale = length / (float)to;
    float wide = scale < 1.0f ? 1.0f : scale;
    float radius = (filter == BICUBIC ? 2.0f : 1.0f) * wide;
    w.center = from + ((float)at + 0.5f) * scale;
    w.shrink = 1.0f / wide;
    w.first = (int)floorf(w.center - radius);
    w.end = (int)ceilf(w.center + radius);
    w.first = w.first < 0 ? 0 : w.first;
    w.end = side < w.end ? side : w.end;
    w.sum = 0.0f;
    for (int n = w.first; n < w.end; n++) {
        w.sum += weight(((float)n + 0.5f - w.center) * w.shrink, filter);
    }
    return w;
}

__device__ float byte_of(float number) {
    return fminf(fmaxf(floorf(number + 0.5f), 0.0f), 255.0f);
}

// A thread makes one pixel of the result, all channels.
// Grid: ceil_div(width, 32), ceil_div(height, 8), pictures. Block: 32, 8.
extern "C" __global__ void prepare(const unsigned char* pixels, const Job* jobs, const Numbers* numbers, float* out,
                                   long long width, long long height, long long filter, long long layout) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (width <= x || height <= y) {
        return;
    }
    Job job = jobs[blockIdx.z];
    int in_x = x - job.to_left, in_y = y - job.to_top;
    bool inside = 0 <= in_x && in_x < job.to_across && 0 <= in_y && in_y < job.to_down;
    float bytes[CHANNELS];
    for (int c = 0; c < CHANNELS; c++) {
        bytes[c] = (float)numbers->fill;
    }
    if (inside) {
        Window across = window(job.left, job.across, job.to_across, in_x, job.width, (int)filter);
        Window down = window(job.top, job.down, job.to_down, in_y, job.height, (int)filter);
        float sums[CHANNELS] = {0.0f, 0.0f, 0.0f};
        for (int column = across.first; column < across.end; column++) {
            const unsigned char* line = pixels + job.offset + (long long)column * CHANNELS;
            float along[CHANNELS] = {0.0f, 0.0f, 0.0f};
            for (int row = down.first; row < down.end; row++) {
                float part = weight(((float)row + 0.5f - down.center) * down.shrink, (int)filter);
                for (int c = 0; c < CHANNELS; c++) {
                    along[c] += part * (float)line[(long long)row * job.width * CHANNELS + c];
                }
            }
            float part = weight(((float)column + 0.5f - across.center) * across.shrink, (int)filter) / across.sum;
            for (int c = 0; c < CHANNELS; c++) {
                sums[c] += part * byte_of(along[c] / down.sum);
            }
        }
        for (int c = 0; c < CHANNELS; c++) {
            bytes[c] = byte_of(sums[c]);
        }
    }
    for (int c = 0; c < CHANNELS; c++) {
        float number = (bytes[numbers->place[c]] * numbers->scale - numbers->mean[c]) / numbers->std[c];
        long long pixel = (long long)y * width + x, plane = width * height;
        long long place = layout == NHWC ? pixel * CHANNELS + c : c * plane + pixel;
        out[blockIdx.z * plane * CHANNELS + place] = number;
    }
}
