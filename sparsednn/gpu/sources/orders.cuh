// What a step of training tells its kernels, in the device's memory: so a graph that was captured once
// serves every step. One array of 32-bit words (gpu/orders.py has the same names); the host writes
// it in front of a step, and no kernel does.

enum Order {
    COUNT,        // columns of this piece; so the array is the `columns` of other programs
    ADD_PIECE,    // whether gradients and scores are added to what is there: all pieces but the first
    FACTOR,       // float: of the gradient of the loss, 1 / images or 2 / (outputs * images)
    RATE,         // float: learning rate (Adam: divided by 1 - beta1^step)
    CORRECTION,   // float: sqrt(1 - beta2^step)
    SCALE,        // float: what the gradient is multiplied with
    CLIP,         // float: and then shortened to this norm, if it is not 0
    FIRST_PICK = 8  // from here on: which of the resident images the columns are
};

// What a step tells the host: sums over its pieces; float64.
enum Result { LOSS, CORRECT, SQUARED_NORM, RESULTS = 4 };
