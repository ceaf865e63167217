// Pictures as a network wants them, in one pass: a region of each is resized, scaled to 0..1, normalised, and laid out
// channels first. Bilinear between the centres of pixels, the border repeated: what OpenCV calls INTER_LINEAR, in 32 bits.

#define CHANNELS 3

// A thread makes one pixel of the output, all channels.
// Grid: ceil_div(width, 32), ceil_div(height, 8), pictures. Block: 32, 8.
extern "C" __global__ void prepare(const unsigned char* pictures, const float* regions, const float* mean,
                                   const float* scale, float* out, long long picture_height, long long picture_width,
                                   long long height, long long width) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (width <= x || height <= y) {
        return;
    }
    const unsigned char* picture = pictures + (long long)blockIdx.z * picture_height * picture_width * CHANNELS;
    const float* region = regions + blockIdx.z * 4;  // left, top, width, height, in pixels
    float from_x = region[0] + ((float)x + 0.5f) * region[2] / (float)width - 0.5f;
    float from_y = region[1] + ((float)y + 0.5f) * region[3] / (float)height - 0.5f;
    from_x = fminf(fmaxf(from_x, 0.0f), (float)(picture_width - 1));
    from_y = fminf(fmaxf(from_y, 0.0f), (float)(picture_height - 1));
    int left = (int)from_x, top = (int)from_y;
    int right = left + 1 < picture_width ? left + 1 : left;
    int bottom = top + 1 < picture_height ? top + 1 : top;
    float part_x = from_x - (float)left, part_y = from_y - (float)top;

    for (int channel = 0; channel < CHANNELS; channel++) {
        float a = picture[(top * picture_width + left) * CHANNELS + channel];
        float b = picture[(top * picture_width + right) * CHANNELS + channel];
        float c = picture[(bottom * picture_width + left) * CHANNELS + channel];
        float d = picture[(bottom * picture_width + right) * CHANNELS + channel];
        float above = a + (b - a) * part_x, below = c + (d - c) * part_x;
        float number = (above + (below - above) * part_y) / 255.0f;
        long long place = (((long long)blockIdx.z * CHANNELS + channel) * height + y) * width + x;
        out[place] = (number - mean[channel]) * scale[channel];
    }
}
