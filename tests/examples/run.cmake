# Runs the examples, in a folder of their own, and holds what they print against what they should. Arguments: build.
cmake_minimum_required(VERSION 3.25)

function(expect example)
  execute_process(COMMAND ${build}/examples/${example} WORKING_DIRECTORY ${build}/examples RESULT_VARIABLE result
                  OUTPUT_VARIABLE out ERROR_VARIABLE out)
  foreach(wanted ${ARGN})
    if(NOT result EQUAL 0 OR NOT out MATCHES "${wanted}")
      message(FATAL_ERROR "${example} ended with ${result} and printed\n${out}\nin place of ${wanted}")
    endif()
  endforeach()
  message(STATUS "${example}\n${out}")
endfunction()

expect(own_score "cauchy: gradients are right, [6-9][0-9]\\.[0-9] %" "1\\)\\): gradients are right, [6-9][0-9]\\.[0-9] %"
       "as a text: the logits agree" "on the GPU: the logits agree|no GPU: skipped")
expect(own_mask "local \\| self: [0-9]+ pairs, [6-9][0-9]\\.[0-9] %" "& alike\\) \\| self: [0-9]+ pairs, [6-9][0-9]"
       "\nnext: 2999 pairs")
expect(own_dataset "trained: [89][0-9]\\.[0-9] %, predicted from rings.safetensors: [89][0-9]\\.[0-9] % of 450 nodes")
